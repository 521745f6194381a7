//! A small state file: TOML for people, with a CRC32 of the text in its last line.
//!
//! Invariant: what [`StateFile::load`] returns is exactly what was stored; anything else in the
//! file is [`DurableError::Damaged`] with its name.
use super::{DurableDir, DurableError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

/// The durable home of one `T`.
pub struct StateFile<T> {
    dir: Arc<dyn DurableDir>,
    name: String,
    content: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> StateFile<T> {
    /// The state file of this name in `dir`; nothing is read or written yet.
    #[must_use]
    pub fn new(dir: Arc<dyn DurableDir>, name: impl Into<String>) -> Self {
        Self { dir, name: name.into(), content: PhantomData }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// What was stored last, or `None` when nothing ever was.
    ///
    /// # Errors
    /// [`DurableError::Damaged`] when the file is not as it was written; [`DurableError::Io`].
    pub fn load(&self) -> Result<Option<T>, DurableError> {
        let Some(bytes) = self.dir.read(&self.name)? else { return Ok(None) };
        let damaged = |why: String| DurableError::Damaged { file: self.path(), why };
        let text = String::from_utf8(bytes).map_err(|_| damaged("it is not text".into()))?;
        let body = verified(&text).map_err(damaged)?;
        toml::from_str(body).map(Some).map_err(|e| damaged(e.message().to_owned()))
    }

    /// Replaces the content, durable when this returns.
    ///
    /// # Errors
    /// [`DurableError::Io`]; the file then holds the old or the new content.
    pub fn store(&self, value: &T) -> Result<(), DurableError> {
        let body = toml::to_string(value)
            .map_err(|e| DurableError::Damaged { file: self.path(), why: e.to_string() })?;
        self.dir.write_atomic(&self.name, sealed(&body).as_bytes())
    }

    /// Removes the file, durable.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    pub fn remove(&self) -> Result<(), DurableError> {
        self.dir.remove(&self.name)
    }
}

const SEAL: &str = "# crc32 = \"";

fn sealed(body: &str) -> String {
    let body =
        if body.is_empty() || body.ends_with('\n') { body.into() } else { format!("{body}\n") };
    format!("{body}{SEAL}{:08x}\"\n", crc32fast::hash(body.as_bytes()))
}

/// The text before the last line, when that line is its checksum.
fn verified(text: &str) -> Result<&str, String> {
    let (body, seal) = match text.rfind(SEAL) {
        Some(at) => text.split_at(at),
        None => return Err("its last line, the checksum, is missing".into()),
    };
    let expected = format!("{SEAL}{:08x}\"\n", crc32fast::hash(body.as_bytes()));
    if seal != expected {
        return Err(format!("its checksum line should be {:?}", expected.trim_end()));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::super::RealDir;
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Sample {
        gid: u64,
        text: String,
        list: Vec<String>,
    }

    fn sample() -> Sample {
        Sample { gid: 7, text: "# crc32 = \"deadbeef\"\n".into(), list: vec!["a".into()] }
    }

    fn file(dir: &tempfile::TempDir) -> StateFile<Sample> {
        StateFile::new(Arc::new(RealDir::open(dir.path()).unwrap()), "state")
    }

    #[test]
    fn what_is_stored_is_what_is_loaded_and_people_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = file(&dir);
        assert_eq!(state.load().unwrap(), None);
        state.store(&sample()).unwrap();
        assert_eq!(state.load().unwrap(), Some(sample()));
        let text = std::fs::read_to_string(state.path()).unwrap();
        assert!(text.starts_with("gid = 7\n"), "{text}");
        state.remove().unwrap();
        assert_eq!(state.load().unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_changed_byte_or_cut_is_an_error_that_names_the_file(
            at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let state = file(&dir);
            state.store(&sample()).unwrap();
            let mut bytes = std::fs::read(state.path()).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            std::fs::write(state.path(), &bytes).unwrap();
            let error = state.load().unwrap_err();
            let damaged = matches!(error, DurableError::Damaged { .. });
            prop_assert!(damaged, "{}", error);
            prop_assert!(error.to_string().contains(&state.path().display().to_string()));
        }
    }
}
