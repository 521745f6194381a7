//! Any text as the name of a wdiff: refused, or a diff that has just that name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wdiff_format::name;

fuzz_target!(|text: &str| {
    if let Ok(diff) = name::parse(text) {
        assert_eq!(name::to_file_name(&diff).ok().as_deref(), Some(text));
    }
});
