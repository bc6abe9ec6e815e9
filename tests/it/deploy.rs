//! What `deploy/` ships starts the program as it is.

use crate::federation::failure;
use std::path::Path;

#[test]
fn the_units_run_verbs_that_there_are_from_homes_they_may_write() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for (unit, missing) in
        [("weighhouse-coordinator.service", "coordinator init"), ("weighhouse-site@.service", "client join")]
    {
        let text = std::fs::read_to_string(folder.join(unit)).unwrap();
        let value = |key: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("{unit} has no {key}")).to_owned()
        };
        let start = value("ExecStart");
        let arguments: Vec<&str> = start.split_whitespace().skip(1).collect();
        assert_eq!(arguments.last().copied(), Some(value("ReadWritePaths").as_str()), "{unit}");
        // There is no such home here, which the verb says: so there is such a verb.
        let said = failure(&arguments);
        assert!(said.contains(missing), "{unit}: {said}");
    }
}
