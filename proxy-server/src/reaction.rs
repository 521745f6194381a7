//! What the proxy does about an archive's answer: the table of semantics.md §4.5, and nothing else.
use proto::v1::WdiffResult;
use server_kit::error::{Reason, RoleError};

/// How an attempt to send ended.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The archive answered.
    Result(WdiffResult, String),
    /// The archive refused with an error of its own.
    Refused(RoleError),
    /// It could not be reached, or the transfer broke.
    Broken(RoleError),
    /// A staged wdiff is damaged or missing.
    Damaged(RoleError),
    /// A forced stop.
    Aborted,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// The archive has them: drop the wdiffs that were sent, take the next ones at once.
    Sent,
    /// The archive will never need them: the same.
    Obsolete,
    /// Stop this queue with a send error; a kick, a new wlog or a start resumes it.
    GiveUp,
    /// Stop this queue with a send error that no new wlog clears: a person has to look.
    Damaged,
    /// Try again with back-off, for ever.
    Retry,
    /// Try again with back-off; give up when the volume has long been quiet.
    RetryUnlessQuiet,
    /// Try again after the shortest delay, for ever.
    RetrySoon,
    /// Do nothing more.
    End,
}

pub(crate) fn react(answer: &Answer) -> Reaction {
    match answer {
        Answer::Result(WdiffResult::Stored, _) => Reaction::Sent,
        Answer::Result(WdiffResult::TooOld | WdiffResult::DifferentUuid, _) => Reaction::Obsolete,
        Answer::Result(WdiffResult::SmallerSize | WdiffResult::ArchiveNotFound, _) => {
            Reaction::GiveUp
        }
        Answer::Result(WdiffResult::TooNew | WdiffResult::Syncing, _) => Reaction::Retry,
        // I10: a full disk ends by itself when space returns, however late.
        Answer::Refused(error) if error.reason() == Reason::NoSpace => Reaction::Retry,
        Answer::Result(WdiffResult::Stopped | WdiffResult::Busy | WdiffResult::Unspecified, _)
        | Answer::Refused(_) => Reaction::RetryUnlessQuiet,
        Answer::Broken(_) => Reaction::RetrySoon,
        Answer::Damaged(_) => Reaction::Damaged,
        Answer::Aborted => Reaction::End,
    }
}

impl Answer {
    /// What a failed call says: no answer at all, or a typed refusal.
    pub(crate) fn from_error(error: RoleError) -> Self {
        match error.reason() {
            Reason::Unreachable => Self::Broken(error),
            _ => Self::Refused(error),
        }
    }

    /// The answer for programs: what the archive said, or of what kind the failure is.
    pub(crate) fn kind(&self) -> (WdiffResult, Reason) {
        match self {
            Self::Result(result, _) => (*result, Reason::Unspecified),
            Self::Refused(error) | Self::Broken(error) | Self::Damaged(error) => {
                (WdiffResult::Unspecified, error.reason())
            }
            Self::Aborted => (WdiffResult::Unspecified, Reason::Cancelled),
        }
    }

    /// The answer for people.
    pub(crate) fn text(&self, archive: &str) -> String {
        match self {
            Self::Result(result, message) => {
                let name = result.as_str_name().trim_start_matches("WDIFF_RESULT_");
                let name = name.to_lowercase().replace('_', "-");
                let colon = if message.is_empty() { "" } else { ": " };
                format!("{archive} answered {name}{colon}{message}")
            }
            Self::Refused(error) => format!("{archive} refused: {}", error.full_message()),
            Self::Broken(error) | Self::Damaged(error) => error.full_message(),
            Self::Aborted => "aborted by a forced stop".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_the_reaction_of_the_table() {
        let table = [
            (WdiffResult::Stored, Reaction::Sent),
            (WdiffResult::TooOld, Reaction::Obsolete),
            (WdiffResult::DifferentUuid, Reaction::Obsolete),
            (WdiffResult::SmallerSize, Reaction::GiveUp),
            (WdiffResult::ArchiveNotFound, Reaction::GiveUp),
            (WdiffResult::TooNew, Reaction::Retry),
            (WdiffResult::Syncing, Reaction::Retry),
            (WdiffResult::Stopped, Reaction::RetryUnlessQuiet),
            (WdiffResult::Busy, Reaction::RetryUnlessQuiet),
            (WdiffResult::Unspecified, Reaction::RetryUnlessQuiet),
        ];
        for (result, reaction) in table {
            assert_eq!(react(&Answer::Result(result, String::new())), reaction, "{result:?}");
        }
        let unreachable = Answer::from_error(RoleError::unreachable("a0", "no route"));
        assert_eq!(react(&unreachable), Reaction::RetrySoon);
        let full = Answer::from_error(RoleError::no_space("cannot store"));
        assert_eq!(react(&full), Reaction::Retry);
        let refused = Answer::from_error(RoleError::stopping("going down"));
        assert_eq!(react(&refused), Reaction::RetryUnlessQuiet);
        assert_eq!(react(&Answer::Damaged(RoleError::damaged("x"))), Reaction::Damaged);
        assert_eq!(react(&Answer::Aborted), Reaction::End);
        let full = Answer::from_error(RoleError::no_space("cannot store"));
        assert_eq!(full.kind(), (WdiffResult::Unspecified, Reason::NoSpace));
        let too_new = Answer::Result(WdiffResult::TooNew, String::new());
        assert_eq!(too_new.kind(), (WdiffResult::TooNew, Reason::Unspecified));
        let text = Answer::Result(WdiffResult::TooNew, "latest is |3|".into()).text("a0");
        assert_eq!(text, "a0 answered too-new: latest is |3|");
    }
}
