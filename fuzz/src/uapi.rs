//! The text that `wg` writes to the device's socket.

use adit::uapi::{Request, RequestError, parse, parse_set};

/// One request, as it comes from the socket.
pub fn run(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').count();
    match parse(data) {
        Ok(Request::Get) => assert_eq!(data, b"get=1\n\n"),
        Ok(Request::Set(request)) => {
            assert!(data.starts_with(b"set=1\n") && data.ends_with(b"\n\n"));
            assert!(request.commands.len() <= lines, "more commands than lines");
            assert!(parse_set(data).is_ok());
        }
        Err(RequestError::Invalid { line }) => assert!((2..=lines).contains(&line)),
        Err(RequestError::Malformed) => assert!(data != b"get=1\n\n" && data != b"set=1\n\n"),
    }
}
