#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| luciola_core::fuzz::session(data));
