use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use adit_lab::{Host, Invocation, Process};
use tempfile::TempDir;

use super::{ADIT, SOON};

/// The user id of `nobody`.
const NOBODY: u32 = 65_534;

/// Everybody may open the TUN device, as udev has it; where it is root's alone, in the mounts of this command only.
/// `ip netns exec` has given it mounts of its own.
pub const OPEN_TUN: &str = "\
    if [ \"$(stat -c %a /dev/net/tun)\" != 666 ]; then \
        mount -t tmpfs -o mode=755 tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 \
        && mount --bind /mnt/tun /dev/net/tun && umount -l /mnt || exit 125; \
    fi; \
    exec \"$@\"";

/// Somebody on a host who is not root, has no capability and can get none, with a directory of their own.
pub struct Nobody {
    pub host: Host,
    directory: TempDir,
}

impl Nobody {
    pub fn on(host: &Host) -> Self {
        let directory = TempDir::new().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        chown(directory.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let nobody = Self { host: host.clone(), directory };
        // The build directory may be closed to others.
        let adit = nobody.directory.path().join("adit");
        fs::copy(ADIT, &adit).unwrap();
        fs::set_permissions(&adit, fs::Permissions::from_mode(0o755)).unwrap();
        nobody
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The program under test, where they can run it.
    pub fn adit(&self) -> String {
        self.path("adit")
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A file that only they can read.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        path
    }

    /// A program run by them.
    pub fn command<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Invocation {
        let (user, home) = (NOBODY.to_string(), self.directory.path().display().to_string());
        let become_nobody = [
            "sh",
            "-c",
            OPEN_TUN,
            "sh",
            "setpriv",
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
        ];
        let words = become_nobody.into_iter().map(str::to_owned).chain(argv.into_iter().map(Into::into));
        self.host.command(words).env("HOME", home)
    }

    /// `adit proxy` that is ready.
    pub fn proxy(&self, arguments: &[&str]) -> Process {
        let adit = self.adit();
        let argv = [adit.as_str(), "proxy"].into_iter().chain(arguments.iter().copied());
        let mut process = self.command(argv).spawn().unwrap();
        process.wait_for_text("proxy ready", SOON).unwrap();
        process
    }
}
