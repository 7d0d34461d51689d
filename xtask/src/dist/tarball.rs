//! The tarball: one directory with the program and its papers, to be unpacked anywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::papers::Papers;
use super::{Program, must, source_date};
use crate::program::root;

const INSTALL: &str = "\
adit is one file. To install it for everybody, with its papers:

    sudo install -m 755 adit /usr/local/bin/adit
    sudo ln -sf adit /usr/local/bin/adit-wg
    sudo install -D -m 644 -t /usr/local/share/man/man1 man/*.1
    sudo install -D -m 644 completions/adit /usr/share/bash-completion/completions/adit
    sudo install -D -m 644 completions/_adit /usr/share/zsh/vendor-completions/_adit
    sudo install -D -m 644 completions/adit.fish /usr/share/fish/vendor_completions.d/adit.fish

adit.service is the unit of the gateway for systemd; `sudo adit service install` writes the same.
";

/// Makes `adit-VERSION-MACHINE-linux-LIBC.tar.gz` in `out`.
pub fn make(program: &Program, papers: &Papers, libc: &str, work: &Path, out: &Path) -> Result<PathBuf> {
    let name = format!("adit-{}-{}-linux-{libc}", program.version, program.machine);
    let tree = work.join("tarball").join(&name);
    for directory in ["man", "completions"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy(&program.path, tree.join("adit"))?;
    for page in papers.man.iter() {
        if let Some(name) = page.file_name() {
            fs::copy(page, tree.join("man").join(name))?;
        }
    }
    for completion in &papers.completions {
        fs::write(tree.join("completions").join(completion.name), &completion.text)?;
    }
    fs::write(tree.join("adit.service"), papers.unit("/usr/local/bin/adit")?)?;
    fs::write(tree.join("INSTALL"), INSTALL)?;
    for paper in ["README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(root().join(paper), tree.join(paper))?;
    }
    let archive = out.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"]);
    tar.arg(format!("--mtime=@{}", source_date())).args(["--use-compress-program", "gzip -9 -n"]);
    must(tar.arg("-cf").arg(&archive).arg("-C").arg(work.join("tarball")).arg(&name))?;
    Ok(archive)
}
