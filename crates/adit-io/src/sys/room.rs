//! A place of its own for one process: namespaces, mounts, and what it may do there
//! (user_namespaces(7), mount_namespaces(7), capabilities(7)).

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check;

/// Who owns the namespaces of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The user namespace we are in; only with `CAP_SYS_ADMIN`.
    Ours,
    /// A new user namespace, in which only our own user and group exist, as themselves.
    New,
}

/// Moves this process into a new network namespace and a new mount namespace, from which nothing spreads. Everything
/// in them is the caller's until [`give_up_capabilities`].
///
/// # Errors
/// `PermissionDenied`, or `StorageFull` when a limit of the system is reached; also when the process has threads.
pub fn enter_room(owner: Owner) -> io::Result<()> {
    let mut spaces = libc::CLONE_NEWNET | libc::CLONE_NEWNS;
    // SAFETY: take nothing and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if owner == Owner::New {
        spaces |= libc::CLONE_NEWUSER;
    }
    // SAFETY: takes no pointers.
    check(unsafe { libc::unshare(spaces) })?;
    if owner == Owner::New {
        // The kernel lets us map our group only once nobody can drop groups in there.
        write_file("/proc/self/setgroups", "deny")?;
        write_file("/proc/self/uid_map", &format!("{user} {user} 1"))?;
        write_file("/proc/self/gid_map", &format!("{group} {group} 1"))?;
    }
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, "")
}

fn write_file(path: &str, text: &str) -> io::Result<()> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("cannot write {path}: {error}"));
    // One write: the kernel takes these files in one piece.
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(explain)
}

/// Covers a directory with an empty one in memory, in the mount namespace of this process.
///
/// # Errors
/// What the system says, with the path.
pub fn cover(directory: &Path) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(Path::new("tmpfs")), directory, Some("tmpfs"), flags, "mode=0755,size=1m")
}

/// Takes away what [`cover`] covered `directory` with; files of it that were bound elsewhere stay.
///
/// # Errors
/// What the system says, with the path.
pub fn uncover(directory: &Path) -> io::Result<()> {
    let path = c_path(directory)?;
    // SAFETY: a string that ends with a zero.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })
        .map(drop)
        .map_err(|error| explain("uncover", directory, &error))
}

/// Makes the file `source` appear in place of the file `target`, in the mount namespace of this process.
///
/// # Errors
/// What the system says, with the path.
pub fn bind_file(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None, libc::MS_BIND, "")
}

fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: &str,
) -> io::Result<()> {
    let source = source.map(c_path).transpose()?;
    let kind = kind.map(CString::new).transpose()?;
    let (place, data) = (c_path(target)?, CString::new(data)?);
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: every pointer is null or a string that ends with a zero and outlives the call.
    check(unsafe {
        libc::mount(pointer(&source), place.as_ptr(), pointer(&kind), flags, data.as_ptr().cast())
    })
    .map(drop)
    .map_err(|error| explain("mount", target, &error))
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn explain(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

/// Leaves this process, and whatever it becomes, only the capabilities of the mask `keep` (bit N is capability N).
/// With `keep` 0 it has none, for good: neither a file with capabilities nor a set-user-ID one gives any.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up_capabilities(keep: u64) -> io::Result<()> {
    if keep == 0 {
        // The bounding set stays as it is: with an empty one the kernel would not even start a file with capabilities,
        // such as ping. Without new privileges it starts and gets none.
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    } else {
        for capability in (0..=last_capability()).filter(|number| keep & (1 << number) == 0) {
            // SAFETY: as above.
            check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) })?;
        }
    }
    // SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    set_capabilities(keep)
}

/// struct __user_cap_header_struct of linux/capability.h.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

/// struct __user_cap_data_struct of linux/capability.h: 32 bits of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn set_capabilities(keep: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapabilityHeader { version: VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 writes two elements, which `data` has.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    check(result as libc::c_int)?;
    for (half, shift) in data.iter_mut().zip([0, 32]) {
        let allowed = (keep >> shift) as u32 & half.permitted;
        *half = CapabilityData { effective: allowed, permitted: allowed, inheritable: 0 };
    }
    // SAFETY: version 3 reads two elements, which `data` has.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check(result as libc::c_int).map(drop)
}

fn last_capability() -> u8 {
    let text = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().ok().filter(|last| *last < 64).unwrap_or(40)
}
