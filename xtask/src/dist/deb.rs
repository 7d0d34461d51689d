//! The package for Debian and what descends from it (`deb(5)`, Debian policy chapters 5, 6, 9 and 12).

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::papers::Papers;
use super::{Program, must, source_date, text_of};
use crate::program::root;

/// systemd learns of the unit; whether the gateway runs is for the administrator to say.
const POSTINST: &str = "#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
";

/// A gateway whose program goes away ends first and puts the host back.
const PRERM: &str = "#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then
    systemctl stop adit.service || true
fi
";

/// Keys are nobody's but the administrator's: /etc/adit stays, even when the package is purged.
const POSTRM: &str = "#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ \"$1\" = purge ] && [ -d /etc/adit ]; then
    echo \"/etc/adit has the keys of a gateway and stays; remove it by hand if you mean to\"
fi
";

/// Makes `adit_VERSION_ARCH.deb` in `out`.
pub fn make(program: &Program, papers: &Papers, tree: &Path, out: &Path) -> Result<PathBuf> {
    let file = |place: &str, contents: &[u8], mode: u32| -> Result<()> {
        let path = tree.join(place);
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        fs::write(&path, contents)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    };
    file("usr/bin/adit", &fs::read(&program.path)?, 0o755)?;
    symlink("adit", tree.join("usr/bin/adit-wg"))?;
    for page in &papers.man {
        let name = page.file_name().and_then(|name| name.to_str()).context("a manual page has a name")?;
        file(&format!("usr/share/man/man1/{name}.gz"), &gzip(page)?, 0o644)?;
    }
    for completion in &papers.completions {
        file(&format!("{}/{}", completion.place, completion.name), completion.text.as_bytes(), 0o644)?;
    }
    file("lib/systemd/system/adit.service", papers.unit("/usr/bin/adit")?.as_bytes(), 0o644)?;
    let restore = "lib/systemd/system/adit-restore-at-every-boot.service";
    file(restore, papers.restore_unit("/usr/bin/adit")?.as_bytes(), 0o644)?;
    let doc = "usr/share/doc/adit";
    file(&format!("{doc}/changelog.gz"), &gzip(&root().join("CHANGELOG.md"))?, 0o644)?;
    file(&format!("{doc}/README.md"), &fs::read(root().join("README.md"))?, 0o644)?;
    file(&format!("{doc}/copyright"), copyright()?.as_bytes(), 0o644)?;
    let control = control(program, size_kib(tree)?)?;
    file("DEBIAN/control", control.as_bytes(), 0o644)?;
    for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
        file(&format!("DEBIAN/{name}"), script.as_bytes(), 0o755)?;
    }
    file("DEBIAN/md5sums", md5sums(tree)?.as_bytes(), 0o644)?;
    // The mode of a directory is that of the umask of whoever makes the package.
    must(Command::new("find").arg(tree).args(["-type", "d", "-exec", "chmod", "755", "{}", "+"]))?;
    let package = out.join(format!("adit_{}_{}.deb", program.version, architecture(&program.machine)));
    let mut build = Command::new("dpkg-deb");
    build.args(["--build", "--root-owner-group"]).arg(tree).arg(&package);
    must(build.env("SOURCE_DATE_EPOCH", source_date()))?;
    Ok(package)
}

/// Debian's name of a machine.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn control(program: &Program, installed_kib: u64) -> Result<String> {
    let libc = oldest_libc(&text_of(Command::new("objdump").arg("-T").arg(&program.path))?);
    let libc =
        libc.map_or_else(|| "libc6".to_owned(), |(major, minor)| format!("libc6 (>= {major}.{minor})"));
    Ok(format!(
        "Package: adit\n\
         Version: {}\n\
         Architecture: {}\n\
         Maintainer: The adit developers <adit@localhost>\n\
         Installed-Size: {installed_kib}\n\
         Depends: {libc}, libgcc-s1, nftables\n\
         Recommends: ca-certificates\n\
         Suggests: openresolv | systemd-resolved\n\
         Section: net\n\
         Priority: optional\n\
         Description: self-hosted VPN: gateway, client and userspace WireGuard device\n \
         adit carries IPv4 and IPv6 through an encrypted tunnel, hides your address\n \
         behind the gateway's, and lets your machines reach each other. It speaks the\n \
         WireGuard protocol, so stock WireGuard apps and tools work with it.\n",
        program.version,
        architecture(&program.machine),
    ))
}

/// The version of the C library that the program needs: the newest of those its symbols name.
fn oldest_libc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (major, minor) = rest.get(..end)?.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    });
    versions.max()
}

fn copyright() -> Result<String> {
    let mit = fs::read_to_string(root().join("LICENSE-MIT"))?;
    let mit: String =
        mit.lines().map(|line| if line.is_empty() { " .\n".into() } else { format!(" {line}\n") }).collect();
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: adit\n\n\
         Files: *\n\
         Copyright: The adit developers\n\
         License: Apache-2.0 or MIT\n\n\
         License: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n\n\
         License: MIT\n{mit}"
    ))
}

fn gzip(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("gzip").args(["-9", "-n", "-c"]).arg(path).output()?;
    anyhow::ensure!(output.status.success(), "gzip failed for {}", path.display());
    Ok(output.stdout)
}

fn size_kib(tree: &Path) -> Result<u64> {
    let said = text_of(Command::new("du").args(["-s", "-k", "--apparent-size"]).arg(tree))?;
    said.split_whitespace().next().and_then(|word| word.parse().ok()).context("du says no size")
}

fn md5sums(tree: &Path) -> Result<String> {
    let mut find = Command::new("sh");
    find.args(["-c", "find usr lib -type f | LC_ALL=C sort | xargs md5sum"]).current_dir(tree);
    text_of(&mut find)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libc_needed_is_the_newest_that_a_symbol_names() {
        let symbols = "x (GLIBC_2.2.5) read\ny (GLIBC_2.34) open\nz (GLIBC_2.14) memcpy\n";
        assert_eq!(oldest_libc(symbols), Some((2, 34)));
        assert_eq!(oldest_libc("no symbols"), None);
    }
}
