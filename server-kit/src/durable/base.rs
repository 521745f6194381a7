//! The base directory of a role. What a role finds half-made there it removes, so it must be sure
//! that the directory is its own: a slip (`--base /home`) must not cost anybody's files.
//!
//! Invariant: a base directory carries the name of its role; one that has directories in it and
//! carries none, or another role's, is refused and not touched.
use super::{DurableDir, DurableError, StateFile, failed};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The file that says whose directory it is.
pub const ROLE_FILE: &str = "walb-role";

#[derive(Serialize, Deserialize)]
struct Owner {
    role: String,
}

/// Makes sure that `dir` is the base directory of a role: it is so already, or becomes so now.
///
/// # Errors
/// [`DurableError::Foreign`] when it is somebody else's; [`DurableError::Io`].
pub fn claim_base(dir: &Arc<dyn DurableDir>, role: &str) -> Result<(), DurableError> {
    let file: StateFile<Owner> = StateFile::new(Arc::clone(dir), ROLE_FILE);
    let foreign = |owner: String| DurableError::Foreign { dir: dir.path().to_owned(), owner };
    match file.load()? {
        Some(owner) if owner.role == role => Ok(()),
        Some(owner) => Err(foreign(format!("the {} role", owner.role))),
        None if has_directories(&**dir)? => Err(foreign("somebody else".to_owned())),
        None => file.store(&Owner { role: role.to_owned() }),
    }
}

fn has_directories(dir: &dyn DurableDir) -> Result<bool, DurableError> {
    let mut names = dir.names().map_err(|e| failed("list", dir.path(), e))?;
    // Every fresh ext file system has this one.
    names.retain(|name| name != "lost+found");
    Ok(names.iter().any(|name| dir.has_dir(name)))
}

#[cfg(test)]
mod tests {
    use super::super::RealDir;
    use super::*;
    use std::fs;
    use std::path::Path;

    fn open_base(path: impl AsRef<Path>, role: &str) -> Result<(), DurableError> {
        claim_base(&(Arc::new(RealDir::create(path.as_ref())?) as Arc<dyn DurableDir>), role)
    }

    #[test]
    fn a_base_directory_belongs_to_one_role_and_others_are_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().join("deep/p0");
        open_base(&base, "proxy").unwrap();
        fs::create_dir(base.join("v0")).unwrap();
        open_base(&base, "proxy").unwrap();
        let refused = open_base(&base, "archive").unwrap_err();
        assert!(refused.to_string().contains("the proxy role"), "{refused}");
        let home = tmp.path().join("home");
        fs::create_dir_all(home.join("alice")).unwrap();
        let refused = open_base(&home, "proxy").unwrap_err();
        assert!(matches!(refused, DurableError::Foreign { .. }), "{refused}");
        assert_eq!(fs::read_dir(&home).unwrap().count(), 1, "nothing was put there");
        let disk = tmp.path().join("disk");
        fs::create_dir_all(disk.join("lost+found")).unwrap();
        fs::write(disk.join("p0.sock"), b"").unwrap();
        open_base(&disk, "proxy").unwrap();
    }
}
