//! The base directory of a role. What a role finds half-made there it removes, so it must be sure
//! that the directory is its own: a slip (`--base /home`) must not cost anybody's files.
//!
//! Invariant: a base directory carries the name of its role; one that has directories in it and
//! carries none, or another role's, is refused and not touched.
use super::{DurableDir, DurableError, RealDir, StateFile, failed};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// The file that says whose directory it is.
pub const ROLE_FILE: &str = "walb-role";

#[derive(Serialize, Deserialize)]
struct Owner {
    role: String,
}

impl RealDir {
    /// Opens the base directory of a role, and makes it when there is none yet.
    ///
    /// # Errors
    /// [`DurableError::Foreign`] when it is somebody else's; [`DurableError::Io`].
    pub fn open_base(path: impl Into<PathBuf>, role: &str) -> Result<Self, DurableError> {
        let path = path.into();
        let dir = Self::create(&path)?;
        let file: StateFile<Owner> = StateFile::new(Arc::new(Self::open(&path)?), ROLE_FILE);
        let foreign = |owner: String| DurableError::Foreign { dir: path.clone(), owner };
        match file.load()? {
            Some(owner) if owner.role == role => {}
            Some(owner) => return Err(foreign(format!("the {} role", owner.role))),
            None if dir.has_directories()? => return Err(foreign("somebody else".to_owned())),
            None => file.store(&Owner { role: role.to_owned() })?,
        }
        Ok(dir)
    }

    fn has_directories(&self) -> Result<bool, DurableError> {
        let mut names = self.names().map_err(|e| failed("list", &self.path, e))?;
        // Every fresh ext file system has this one.
        names.retain(|name| name != "lost+found");
        Ok(names.iter().any(|name| self.path.join(name).is_dir()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_base_directory_belongs_to_one_role_and_others_are_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().join("deep/p0");
        RealDir::open_base(&base, "proxy").unwrap();
        fs::create_dir(base.join("v0")).unwrap();
        RealDir::open_base(&base, "proxy").unwrap();
        let refused = RealDir::open_base(&base, "archive").unwrap_err();
        assert!(refused.to_string().contains("the proxy role"), "{refused}");
        let home = tmp.path().join("home");
        fs::create_dir_all(home.join("alice")).unwrap();
        let refused = RealDir::open_base(&home, "proxy").unwrap_err();
        assert!(matches!(refused, DurableError::Foreign { .. }), "{refused}");
        assert_eq!(fs::read_dir(&home).unwrap().count(), 1, "nothing was put there");
        let disk = tmp.path().join("disk");
        fs::create_dir_all(disk.join("lost+found")).unwrap();
        fs::write(disk.join("p0.sock"), b"").unwrap();
        RealDir::open_base(&disk, "proxy").unwrap();
    }
}
