//! The safetensors header parser on arbitrary bytes: no panic, and every accepted range lies in the file without overlap.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagoda_engine::weights::safetensors::parse_header;

fuzz_target!(|data: &[u8]| {
    let Ok(mut entries) = parse_header(data) else { return };
    entries.sort_by_key(|entry| entry.start);
    let mut end = 0;
    for entry in &entries {
        assert!(entry.start >= end, "{} overlaps the tensor before it", entry.name);
        end = entry.start.checked_add(entry.len).expect("a range that was accepted");
        assert!(end <= data.len(), "{} ends at {end} of {}", entry.name, data.len());
    }
});
