use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{AgentError, Outcome, Words, failed, megabits_per_second};

const BUFFER_BYTES: usize = 131_072;
const STREAMS_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(15);

/// Reads connections to their end and tells each sender how many bytes came.
pub(super) fn sink(words: &mut Words) -> Outcome {
    let address: SocketAddr = words.required_option("--listen")?;
    let connections = words.option("--connections")?.unwrap_or(usize::MAX);
    words.end()?;
    let listener = TcpListener::bind(address).map_err(failed(format!("cannot listen on {address}")))?;
    println!("listening on {}", listener.local_addr()?);
    let mut readers = Vec::new();
    for stream in listener.incoming().take(connections) {
        let stream = stream?;
        readers.retain(|reader: &thread::JoinHandle<_>| !reader.is_finished());
        if readers.len() < STREAMS_MAX {
            readers.push(thread::spawn(move || drain(stream)));
        }
    }
    readers.into_iter().for_each(|reader| drop(reader.join()));
    Ok(())
}

fn drain(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?.ip().to_canonical();
    let started = Instant::now();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    while let length @ 1.. = stream.read(&mut buffer)? {
        bytes += length as u64;
    }
    let seconds = started.elapsed().as_secs_f64();
    stream.write_all(&bytes.to_be_bytes())?;
    let rate = megabits_per_second(bytes, seconds);
    println!("{}", json!({ "peer": peer, "bytes": bytes, "seconds": seconds, "mbits_per_second": rate }));
    Ok(())
}

/// Sends as fast as it goes and reports what the sink has counted.
pub(super) fn source(words: &mut Words) -> Outcome {
    let seconds = words.option::<f64>("--seconds")?.unwrap_or(3.0);
    let streams = words.option::<usize>("--streams")?.unwrap_or(1).clamp(1, STREAMS_MAX);
    let address: SocketAddr = words.required("ADDR")?;
    words.end()?;
    let duration =
        Duration::try_from_secs_f64(seconds).map_err(|error| AgentError::Usage(error.to_string()))?;
    let started = Instant::now();
    let senders: Vec<_> =
        (0..streams).map(|_| thread::spawn(move || pour(address, started + duration))).collect();
    let mut bytes = 0;
    for sender in senders {
        let counted = sender.join().map_err(|_| AgentError::Failed("a sender broke down".to_owned()))?;
        bytes += counted.map_err(failed(format!("sending to {address}")))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = megabits_per_second(bytes, seconds);
    println!(
        "{}",
        json!({ "bytes": bytes, "seconds": seconds, "mbits_per_second": rate, "streams": streams })
    );
    Ok(())
}

fn pour(address: SocketAddr, end: Instant) -> std::io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let buffer = vec![0x5a; BUFFER_BYTES];
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut counted = [0; 8];
    stream.read_exact(&mut counted)?;
    Ok(u64::from_be_bytes(counted))
}
