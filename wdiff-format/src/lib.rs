//! wdiff-format: see ARCHITECTURE.md.
#![forbid(unsafe_code)]
