//! What a job keeps over rounds beside its model: from memory, or after a restart from the store.

use super::{Driver, DriverError};
use weighhouse_shared::ids::JobId;
use weighhouse_shared::model::ServerState;

impl Driver {
    /// What the job goes into its next round with beside its model, taken out of memory; None if it keeps nothing.
    pub(super) fn take_server_state(&mut self, id: JobId) -> Result<Option<ServerState>, DriverError> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(None) };
        if let Some(state) = job.state.take() {
            return Ok(Some(state));
        }
        let contract = job.machine.contract();
        let network = contract.network().map_err(|error| DriverError::Job { reason: error.to_string() })?;
        let Some(start) = contract.server_state(network.parameter_count()) else { return Ok(None) };
        Ok(Some(self.parts.store.server_state(id, job.machine.round(), start)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::witnessing::tests::{SITE, accept, announce, connect, driver, submit, update};
    use super::super::{Input, JobStatus};
    use super::*;
    use std::path::Path;
    use weighhouse_shared::ids::{ContentHash, RoundId};

    const ROUNDS: u32 = 5;

    /// The round's update; the same in every run.
    fn values(round: u32) -> [i32; 2] {
        [[1 << 18, -5], [1 << 20, 77], [-(1 << 19), 1 << 16], [3, -(1 << 20)], [1 << 17, 1 << 10]]
            [round as usize]
    }

    /// Gives the driver the updates of rounds `from` up to the end; the models after each. After each round, `between` is
    /// told which comes next.
    fn run(
        driver: &mut Driver,
        job: JobId,
        from: u32,
        spool: &Path,
        between: impl Fn(u32),
    ) -> Vec<ContentHash> {
        let mut models = Vec::new();
        for round in from..ROUNDS {
            let entries = 100 * (1 + driver.jobs[&job].number) + u64::from(round);
            announce(driver, entries, job, RoundId(round));
            let update = update(driver, job, RoundId(round), values(round), spool);
            driver.take(Input::Update(SITE, update)).unwrap();
            assert_eq!(driver.jobs[&job].machine.round(), RoundId(round + 1));
            models.push(driver.jobs[&job].machine.model());
            between(round + 1);
        }
        assert_eq!(driver.jobs[&job].machine.status(), &JobStatus::Finished);
        models
    }

    fn copy_folder(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for item in std::fs::read_dir(from).unwrap() {
            let (path, to) = (item.as_ref().unwrap().path(), to.join(item.unwrap().file_name()));
            if path.is_dir() {
                copy_folder(&path, &to);
            } else {
                std::fs::copy(&path, &to).unwrap();
            }
        }
    }

    /// What is on disk between two rounds is what a process that is killed there leaves behind: from each such copy
    /// the job goes on, and each of its models has the same hash.
    #[test]
    fn a_job_killed_between_any_two_rounds_comes_to_the_same_models_to_the_bit() {
        for strategy in ["fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedavg"] {
            let folder = tempfile::tempdir().unwrap();
            let (state, spool) = (folder.path().join("state"), folder.path().join("spool"));
            let mut first = driver(&state);
            let _sent = connect(&mut first, 1, 3);
            let more =
                format!("strategy = \"{strategy}\"\n[training]\nrounds = {ROUNDS}\naverage_weights = 0.5");
            let job = submit(&mut first, &more);
            let left = |round: u32| folder.path().join(format!("killed-before-{round}"));
            let models = run(&mut first, job, 0, &spool, |round| copy_folder(&state, &left(round)));
            for round in 1..ROUNDS {
                let mut second = driver(&left(round));
                let _sent = connect(&mut second, 1, 99 + u64::from(round));
                accept(&mut second, job);
                let rest = run(&mut second, job, round, &spool, |_| ());
                assert_eq!(rest, models[round as usize..], "{strategy} from round {round}");
            }
            // Nothing is left of the state once the job is over.
            let contract = first.jobs[&job].machine.contract().clone();
            for round in 1..=ROUNDS {
                let start = contract.server_state(2).unwrap();
                assert!(first.parts.store.server_state(job, RoundId(round), start).is_err());
            }
        }
    }

    /// Both start from a model of zeros; a restarted coordinator finds it only in the store.
    #[test]
    fn regression_a_job_does_not_drop_the_model_that_another_starts_from() {
        let folder = tempfile::tempdir().unwrap();
        let (state, spool) = (folder.path().join("state"), folder.path().join("spool"));
        let mut first = driver(&state);
        let _sent = connect(&mut first, 1, 3);
        let job = submit(&mut first, &format!("[training]\nrounds = {ROUNDS}"));
        let other = submit(&mut first, &format!("max_time_s = 5\n[training]\nrounds = {ROUNDS}"));
        let start = first.jobs[&other].machine.model();
        assert_eq!(start, first.jobs[&job].machine.model());
        run(&mut first, job, 0, &spool, |_| ());
        assert!(first.parts.store.model(start).is_ok());
        run(&mut first, other, 0, &spool, |_| ());
        assert!(first.parts.store.model(start).is_err(), "nobody starts from it any more");
    }
}
