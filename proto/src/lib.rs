//! The wire between the roles: `proto/walb/v1/*.proto`, the code generated from them, and the thin
//! conversions to domain types. No logic lives here.
#![forbid(unsafe_code)]

pub mod convert;

/// Messages, clients and servers of package `walb.v1`, generated from the protos.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::cast_possible_truncation,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation is in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("walb.v1");
}
