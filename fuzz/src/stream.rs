//! A stream of messages as it comes over TCP and in WebSocket frames, cut anywhere.

use adit_io::carrier::stream::frame::{Frame, LENGTH_LEN, MESSAGE_MAX, MESSAGE_MIN};
use adit_io::carrier::stream::websocket::{Decoder, Side};

/// The first byte says how the stream is cut and who sent it, the rest is the stream.
pub fn run(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else { return };
    let step = usize::from(how >> 1) + 1;
    let side = if how & 1 == 0 { Side::Server } else { Side::Client };
    assert_eq!(messages(stream, step), messages(stream, usize::MAX));
    assert_eq!(decoded(stream, step, side), decoded(stream, usize::MAX, side));
    if let Ok(plain) = decoded(stream, step, side) {
        assert!(plain.len() <= stream.len());
        let _ = messages(&plain, step);
    }
}

/// The whole messages, and what is left of the last; `None` for it where the stream is broken.
fn messages(stream: &[u8], step: usize) -> (Vec<Vec<u8>>, Option<usize>) {
    let (mut found, mut buffer) = (Vec::new(), Vec::new());
    for piece in stream.chunks(step.min(stream.len().max(1))) {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::at_start_of(&buffer) {
                Frame::Whole(range) => {
                    assert!(range.start == LENGTH_LEN && range.end <= buffer.len());
                    assert!((MESSAGE_MIN..=MESSAGE_MAX).contains(&range.len()));
                    let end = range.end;
                    found.push(buffer[range].to_vec());
                    buffer.drain(..end);
                }
                Frame::Partial { missing } => {
                    assert!(missing > 0 && buffer.len() < LENGTH_LEN + MESSAGE_MAX);
                    break;
                }
                Frame::Wrong => return (found, None),
            }
        }
    }
    (found, Some(buffer.len()))
}

fn decoded(stream: &[u8], step: usize, side: Side) -> Result<Vec<u8>, String> {
    let (mut decoder, mut plain) = (Decoder::new(side), Vec::new());
    for piece in stream.chunks(step.min(stream.len().max(1))) {
        let mut piece = piece.to_vec();
        let len = decoder.decode(&mut piece).map_err(|error| error.to_string())?;
        assert!(len <= piece.len());
        plain.extend_from_slice(&piece[..len]);
        // Pings are answered between receives; no more than the last waits.
        assert!(decoder.take_pings().iter().all(|ping| ping.len() <= 125));
    }
    Ok(plain)
}
