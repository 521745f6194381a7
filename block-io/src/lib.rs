//! block-io: see ARCHITECTURE.md.
