//! The rows, one file each.

mod files;
mod p1;
mod p2;
mod p3;

use crate::bench::Row;

/// All rows, in the order of the table.
pub(crate) fn all() -> Vec<Box<dyn Row>> {
    vec![Box::new(p1::ToWdiff), Box::new(p2::Merge), Box::new(p3::Redo)]
}
