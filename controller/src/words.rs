//! Commands that servers suggest, with their name in place of the letter: a server does not know
//! what the group calls it, so it says `walbc hash-backup S vol0`.

use crate::error::ControlError;
use crate::group::{Group, ServerRole};

/// The text with the server's name wherever a suggested command means that server.
pub(crate) fn named(text: &str, server: &str, role: ServerRole) -> String {
    let own: &[&str] = match role {
        ServerRole::Storage => &["S", "STORAGE", "SERVER"],
        ServerRole::Proxy => &["P", "PROXY", "SERVER"],
        ServerRole::Archive => &["A", "ARCHIVE", "SERVER"],
    };
    // The words since the last `walbc`: the first is the verb, the second the server.
    let mut since = usize::MAX;
    let words = text.split(' ').map(|word| {
        since = since.saturating_add(1);
        if word.trim_start_matches(['`', '(']) == "walbc" {
            since = 0;
        }
        let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        match since {
            2 if own.contains(&bare) => word.replacen(bare, server, 1),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// An error as it is printed.
pub(crate) fn said(group: &Group, error: &ControlError) -> String {
    let text = error.to_string();
    let server = match error {
        ControlError::Refused { server, .. } | ControlError::Operation { server, .. } => server,
        _ => return text,
    };
    match group.server(server) {
        Ok(known) => named(&text, server, known.role),
        Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_that_means_the_server_becomes_its_name() {
        for (role, text, expected) in [
            (
                ServerRole::Storage,
                "logs were lost: walbc hash-backup S vol0; last attempt: none",
                "logs were lost: walbc hash-backup s0 vol0; last attempt: none",
            ),
            (
                ServerRole::Storage,
                "repeat it: walbc stop S, or wait",
                "repeat it: walbc stop s0, or wait",
            ),
            (ServerRole::Archive, "`walbc diffs ARCHIVE v`", "`walbc diffs s0 v`"),
            (ServerRole::Storage, "walbc diffs ARCHIVE v", "walbc diffs ARCHIVE v"),
            (ServerRole::Archive, "(walbc repair ARCHIVE v)", "(walbc repair s0 v)"),
            (ServerRole::Storage, "S is not a command", "S is not a command"),
        ] {
            assert_eq!(named(text, "s0", role), expected);
        }
    }
}
