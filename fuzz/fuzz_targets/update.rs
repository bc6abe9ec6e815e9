#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = weighhouse_shared::fuzzing::update(bytes);
});
