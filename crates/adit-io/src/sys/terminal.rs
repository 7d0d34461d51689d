//! The terminal that a stream may lead to.

use std::os::fd::{AsFd, AsRawFd};

/// How many columns the terminal behind `stream` has; `None` when it is no terminal, or does not say.
pub fn terminal_columns(stream: impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the pointer, which is valid for that, and nothing else (tty_ioctl(4)).
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_terminal() {
        assert_eq!(terminal_columns(std::fs::File::open("/dev/null").unwrap()), None);
    }
}
