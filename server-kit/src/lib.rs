//! server-kit: see ARCHITECTURE.md.
#![forbid(unsafe_code)]
