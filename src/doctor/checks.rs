//! The checks themselves: facts in, a finding out. Nothing is read or asked here.

use serde::Serialize;
use std::error::Error;
use std::io;
use std::path::Path;
use weighhouse_client::policy::Review;
use weighhouse_client::session::ConnectError;
use weighhouse_shared::policy::Policy;
use weighhouse_shared::tls::Validity;

const DAY_S: u64 = 86_400;
/// No release of this program is older than 2026-01-01: a clock before it is wrong.
const EARLIEST_S: u64 = 1_767_225_600;
/// A certificate that ends sooner than this is a problem; one that renews itself does so long before.
const SOON_S: u64 = 30 * DAY_S;
/// Less free space than this is a problem, in bytes.
const MIN_FREE: u64 = 1 << 30;

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The settings file.
    Settings,
    /// The machine's clock.
    Clock,
    /// The network.
    Port,
    /// A key file.
    Key,
    /// A certificate.
    Certificate,
    /// Room and permission in the home folder.
    Disk,
    /// What the site allows.
    Policy,
    /// What the columns mean.
    Schema,
    /// The site's records.
    Data,
    /// The site's ledger.
    Ledger,
    /// The coordinator's database.
    State,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: Subject,
    /// What is the case.
    pub found: String,
    /// What to do about it; None if nothing needs to be done.
    pub cure: Option<String>,
}

impl Finding {
    fn passed(subject: Subject, found: impl Into<String>) -> Self {
        Self { subject, found: found.into(), cure: None }
    }

    fn problem(subject: Subject, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { subject, found: found.into(), cure: Some(cure.into()) }
    }

    /// From an error, whose text says what to do after a semicolon, or does not.
    fn of_error(subject: Subject, error: &dyn Error, otherwise: &str) -> Self {
        let text = error.to_string();
        let (found, cure) = text.split_once("; ").unwrap_or((&text, otherwise));
        let mut found = found.to_owned();
        let mut cause = error.source();
        while let Some(error) = cause {
            found = format!("{found}: {error}");
            cause = error.source();
        }
        Self::problem(subject, found, cure)
    }
}

/// Any part of a home that is read and is as it should be, or says itself what is wrong.
pub fn readable<E: Error>(subject: Subject, read: Result<impl Into<String>, &E>, otherwise: &str) -> Finding {
    match read {
        Ok(found) => Finding::passed(subject, found),
        Err(error) => Finding::of_error(subject, error, otherwise),
    }
}

/// The clock against what must lie behind it: `newest` is a time and what has it.
pub fn clock(now_s: u64, newest: Option<(u64, &str)>) -> Finding {
    let cure = "set the machine's clock, and keep it right with a time service (chrony, systemd-timesyncd)";
    let (behind_s, whose) = match newest {
        _ if now_s < EARLIEST_S => (EARLIEST_S - now_s, "this program"),
        Some((newest_s, whose)) if now_s < newest_s => (newest_s - now_s, whose),
        _ => return Finding::passed(Subject::Clock, "not behind anything that was written before"),
    };
    Finding::problem(Subject::Clock, format!("it is {} behind {whose}", span(behind_s)), cure)
}

/// A certificate's days; `renewal` says how a new one is had, `renews_itself` whether that happens without anyone.
pub fn certificate(
    name: &str,
    validity: Option<Validity>,
    fits_key: bool,
    now_s: u64,
    renewal: &str,
) -> Finding {
    let problem = |found: String| Finding::problem(Subject::Certificate, found, renewal);
    let Some(Validity { not_before_s, not_after_s }) = validity else {
        return problem(format!("{name} does not hold a certificate"));
    };
    if !fits_key {
        return problem(format!("{name} is of another key or another authority"));
    }
    if now_s < not_before_s {
        let cure =
            "set the machine's clock; if it is right, the machine that issued the certificate is wrong";
        let found = format!("{name} is valid only in {}", span(not_before_s - now_s));
        return Finding::problem(Subject::Certificate, found, cure);
    }
    if not_after_s <= now_s {
        return problem(format!("{name} expired {} ago", span(now_s - not_after_s)));
    }
    match span(not_after_s - now_s) {
        left if not_after_s - now_s < SOON_S => problem(format!("{name} expires in {left}")),
        left => Finding::passed(Subject::Certificate, format!("{name} is valid for {left}")),
    }
}

/// A private key's file mode: nobody but its owner may read it.
pub fn key(path: &Path, mode: io::Result<u32>) -> Finding {
    match mode {
        Ok(mode) if mode & 0o077 == 0 => {
            Finding::passed(Subject::Key, format!("{} is its owner's alone", path.display()))
        }
        Ok(mode) => Finding::problem(
            Subject::Key,
            format!("{} can be read by others (mode {:o})", path.display(), mode & 0o777),
            format!("chmod 600 {}", path.display()),
        ),
        Err(error) => Finding::problem(
            Subject::Key,
            format!("{} cannot be read: {error}", path.display()),
            "restore it from a backup, or run as the user who owns the home",
        ),
    }
}

/// Whether the home can be written, and has room.
pub fn disk(home: &Path, written: io::Result<()>, free_bytes: Option<u64>) -> Finding {
    let home = home.display();
    if let Err(error) = written {
        let cure = "free space, make the file system writable, or run as the user who owns the home";
        return Finding::problem(Subject::Disk, format!("cannot write in {home}: {error}"), cure);
    }
    match free_bytes {
        Some(free) if free < MIN_FREE => Finding::problem(
            Subject::Disk,
            format!("{} MiB are free in {home}", free >> 20),
            format!("free space, so that there is at least {} MiB", MIN_FREE >> 20),
        ),
        Some(free) => Finding::passed(Subject::Disk, format!("{home} is writable, {} GiB free", free >> 30)),
        None => Finding::passed(Subject::Disk, format!("{home} is writable")),
    }
}

/// The way to the coordinator and its answer; None if it did not answer in time.
pub fn coordinator(name: &str, connected: Option<Result<(), &ConnectError>>) -> Finding {
    match connected {
        Some(Ok(())) => {
            Finding::passed(Subject::Port, format!("the coordinator at {name} answers and knows this site"))
        }
        Some(Err(error)) => {
            Finding::of_error(Subject::Port, error, "join again with a new invite from the operator")
        }
        None => Finding::problem(
            Subject::Port,
            format!("the coordinator at {name} does not answer"),
            "start it; allow UDP from here to that port in every firewall between",
        ),
    }
}

/// The port the coordinator listens on, when it does not run: whether it could.
pub fn listening(address: std::net::SocketAddr, bound: Result<(), io::ErrorKind>) -> Finding {
    let problem = |found: String, cure: &str| Finding::problem(Subject::Port, found, cure);
    match bound {
        Ok(()) => Finding::passed(Subject::Port, format!("UDP {address} is free; the daemon does not run")),
        Err(io::ErrorKind::AddrInUse) => problem(
            format!("UDP {address} is used by a program that is not this home's daemon"),
            "stop that program, or change `listen` in coordinator.toml",
        ),
        Err(io::ErrorKind::AddrNotAvailable) => problem(
            format!("this machine has no address {}", address.ip()),
            "change `listen` in coordinator.toml, to 0.0.0.0 for all addresses",
        ),
        Err(io::ErrorKind::PermissionDenied) => problem(
            format!("this user may not listen on UDP {address}"),
            "change `listen` in coordinator.toml to a port of 1024 or more",
        ),
        Err(kind) => {
            problem(format!("cannot listen on UDP {address}: {kind}"), "change `listen` in coordinator.toml")
        }
    }
}

/// The coordinator's own daemon, which answered.
pub fn answering(address: &str) -> Finding {
    Finding::passed(Subject::Port, format!("the daemon answers at {address}"))
}

/// What would become of the policy at the daemon's next start.
pub fn policy(review: &Review) -> Finding {
    match (&review.refusal, review.in_force) {
        (Some(reason), _) => Finding::problem(
            Subject::Policy,
            format!("the daemon would refuse policy.toml: {reason}"),
            "put the policy in force back, or have the officer sign this one with `weighhouse policy sign`",
        ),
        (None, true) => Finding::passed(Subject::Policy, "policy.toml is the one in force"),
        (None, false) => {
            Finding::passed(Subject::Policy, "policy.toml comes into force at the daemon's next start")
        }
    }
}

/// The records, once read: how many customers there are.
pub fn data(policy: &Policy, customers: u64) -> Finding {
    let min = policy.customers.min;
    if customers < min {
        return Finding::problem(
            Subject::Data,
            format!("there are {customers} customers, and policy.toml asks for at least {min}"),
            "add records in client.toml, or have the policy changed",
        );
    }
    Finding::passed(Subject::Data, format!("{customers} customers can be learned from"))
}

/// A stretch of time for people.
fn span(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / DAY_S),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weighhouse_client::policy::{Signature, check_customers};
    use weighhouse_client::records::RecordsError;
    use weighhouse_shared::policy::first_policy;
    use weighhouse_shared::privacy::{Delta, Epsilon};

    const NOW: u64 = EARLIEST_S + 1_000 * DAY_S;

    fn is_problem(finding: &Finding, found: &str, cure: &str) {
        assert!(finding.found.contains(found), "{finding:?}");
        assert!(finding.cure.as_deref().is_some_and(|text| text.contains(cure)), "{finding:?}");
    }

    fn is_passed(finding: &Finding) {
        assert_eq!(finding.cure, None, "{finding:?}");
    }

    #[test]
    fn a_clock_behind_the_program_or_the_ledger_is_a_problem() {
        is_passed(&clock(NOW, None));
        is_passed(&clock(NOW, Some((NOW, "the ledger"))));
        is_problem(
            &clock(EARLIEST_S - 600, None),
            "10 minutes behind this program",
            "set the machine's clock",
        );
        let found = clock(NOW, Some((NOW + 3 * DAY_S, "the ledger's newest entry")));
        is_problem(&found, "3 days behind the ledger's newest entry", "time service");
    }

    #[test]
    fn a_certificate_must_be_one_fit_its_key_and_be_valid_for_a_month() {
        let validity = |from: u64, until: u64| Some(Validity { not_before_s: from, not_after_s: until });
        let good = validity(NOW - DAY_S, NOW + 400 * DAY_S);
        let check = |validity, fits| certificate("site.crt", validity, fits, NOW, "do this");
        is_passed(&check(good, true));
        is_problem(&check(None, true), "site.crt does not hold a certificate", "do this");
        is_problem(&check(good, false), "of another key or another authority", "do this");
        is_problem(&check(validity(NOW + 7_200, NOW + 400 * DAY_S), true), "valid only in 2 hours", "clock");
        is_problem(&check(validity(NOW - DAY_S, NOW), true), "expired 0 seconds ago", "do this");
        is_problem(&check(validity(NOW - DAY_S, NOW + 29 * DAY_S), true), "expires in 29 days", "do this");
    }

    #[test]
    fn a_key_that_others_can_read_or_nobody_can_is_a_problem() {
        let path = Path::new("site.key");
        is_passed(&key(path, Ok(0o100_600)));
        is_problem(&key(path, Ok(0o100_640)), "can be read by others (mode 640)", "chmod 600 site.key");
        is_problem(&key(path, Err(io::ErrorKind::NotFound.into())), "cannot be read", "restore it");
    }

    #[test]
    fn a_disk_that_is_full_or_read_only_is_a_problem() {
        let home = Path::new("home");
        is_passed(&disk(home, Ok(()), Some(5 << 30)));
        is_passed(&disk(home, Ok(()), None));
        is_problem(&disk(home, Ok(()), Some(5 << 20)), "5 MiB are free", "at least 1024 MiB");
        is_problem(
            &disk(home, Err(io::ErrorKind::StorageFull.into()), Some(0)),
            "cannot write",
            "free space",
        );
    }

    #[test]
    fn a_coordinator_that_cannot_be_reached_or_refuses_is_a_problem() {
        let name = "shop.example:7443";
        is_passed(&coordinator(name, Some(Ok(()))));
        is_problem(&coordinator(name, None), "does not answer", "allow UDP");
        let refused = ConnectError::CertificateRefused;
        is_problem(&coordinator(name, Some(Err(&refused))), "refuses this site's certificate", "new invite");
        let unknown = ConnectError::Resolve { name: name.into() };
        is_problem(&coordinator(name, Some(Err(&unknown))), "cannot find the address", "check `coordinator`");
        let address = "127.0.0.1:1".parse().unwrap();
        let other = ConnectError::WrongCoordinator { address };
        is_problem(&coordinator(name, Some(Err(&other))), "is not the one this site joined", "invite");
    }

    #[test]
    fn a_port_that_cannot_be_listened_on_is_a_problem() {
        let check = |bound| listening("0.0.0.0:7443".parse().unwrap(), bound);
        is_passed(&check(Ok(())));
        is_passed(&answering("127.0.0.1:7443"));
        is_problem(&check(Err(io::ErrorKind::AddrInUse)), "not this home's daemon", "stop that program");
        is_problem(&check(Err(io::ErrorKind::AddrNotAvailable)), "no address 0.0.0.0", "0.0.0.0");
        is_problem(&check(Err(io::ErrorKind::PermissionDenied)), "may not listen", "1024 or more");
        is_problem(&check(Err(io::ErrorKind::Unsupported)), "cannot listen", "change `listen`");
    }

    #[test]
    fn a_policy_the_daemon_would_refuse_is_a_problem() {
        let review = |refusal: Option<&str>, in_force| Review {
            in_force,
            signature: Signature::Missing,
            refusal: refusal.map(Into::into),
            changes: Vec::new(),
        };
        is_passed(&policy(&review(None, true)));
        is_passed(&policy(&review(None, false)));
        is_problem(&policy(&review(Some("not signed"), false)), "refuse policy.toml: not signed", "sign");
    }

    #[test]
    fn fewer_customers_than_the_policy_asks_for_are_a_problem() {
        let text = first_policy(Epsilon::new(8.0).unwrap(), Delta::new(1e-5).unwrap());
        let mut policy = Policy::parse(&text).unwrap();
        policy.customers.min = 50;
        is_passed(&data(&policy, 50));
        is_problem(&data(&policy, 49), "49 customers, and policy.toml asks for at least 50", "add records");
        assert!(check_customers(&policy, 49).is_err(), "the daemon agrees");
    }

    #[test]
    fn what_says_itself_what_to_do_is_a_problem_with_that_cure() {
        let settings: Result<&str, &RecordsError> = Ok("read");
        is_passed(&readable(Subject::Settings, settings, ""));
        let empty = RecordsError::Empty { files: "a.csv".into() };
        let found = readable(Subject::Data, Err::<&str, _>(&empty), "");
        is_problem(&found, "no row in a.csv", "a site needs customers");
        let damaged = RecordsError::Read { path: "a.csv".into(), source: io::Error::other("odd").into() };
        let found = readable(Subject::Data, Err::<&str, _>(&damaged), "");
        is_problem(&found, "cannot read the records in a.csv: odd", "check `data.files`");
    }
}
