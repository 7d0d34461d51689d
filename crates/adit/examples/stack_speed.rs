//! Our stack beside `ipstack`, each as the end that a connection comes to, over ways in memory of 0, 20 and 100 ms.
//!
//! The other end is our stack both times, because `ipstack` opens no connections. No cipher, no socket, no loss: what is
//! measured is TCP. Every figure is a median of interleaved runs.
//!
//! ```text
//! cargo run --release -p adit --example stack_speed
//! ```

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use adit::stack::{Network, Sink, Stack, stack};
use adit_io::tun::{Inside, VnetHeader};
use ipstack::{IpStack, IpStackConfig, IpStackStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const MTU: u16 = 1_420;
const PORT: u16 = 5_001;
const RUNS: usize = 3;
const SECONDS: f64 = 3.0;
/// What is not counted: the beginning, in which a connection finds out how fast the way is.
const LEAD_IN: f64 = 1.0;

type Packet = Vec<u8>;

fn main() {
    println!("Mbit/s, medians of {RUNS} runs of {SECONDS} s");
    println!("{:>8}  {:>22}  {:>22}", "RTT", "it receives", "it sends");
    println!("{:>8}  {:>10} {:>11}  {:>10} {:>11}", "", "ours", "ipstack", "ours", "ipstack");
    for rtt_millis in [0, 20, 100] {
        let one_way = Duration::from_millis(rtt_millis) / 2;
        let mut figures = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for _ in 0..RUNS {
            for (row, sends) in figures.iter_mut().zip([false, true]) {
                for (cell, other) in row.iter_mut().zip([false, true]) {
                    cell.push(measure(one_way, sends, other));
                }
            }
        }
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let [[mut a, mut b], [mut c, mut d]] = figures;
        let (a, b, c, d) = (median(&mut a), median(&mut b), median(&mut c), median(&mut d));
        println!("{rtt_millis:>5} ms  {a:>10.0} {b:>11.0}  {c:>10.0} {d:>11.0}");
    }
}

/// Megabits a second of one connection to a stack that `sends` or receives.
fn measure(one_way: Duration, sends: bool, other: bool) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let (to_opener, opener_in) = mpsc::channel();
    let (to_end, end_in) = mpsc::channel();
    let opener = start(1, opener_in, way(one_way, to_end), &ended);
    let back = way(one_way, to_opener);
    let rate = runtime.block_on(async {
        let remote: SocketAddr = format!("10.0.0.2:{PORT}").parse().unwrap();
        if other {
            let (up, device_in) = unbounded_channel();
            thread::spawn(move || {
                while let Ok(packet) = end_in.recv() {
                    if up.send(packet).is_err() {
                        return;
                    }
                }
            });
            let device = Device { arrived: device_in, back };
            let mut config = IpStackConfig::default();
            config.mtu(MTU).unwrap();
            // A thread of its own, as our stack has.
            let (accepted, mut streams): (UnboundedSender<_>, _) = unbounded_channel();
            let end = ended.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let mut stack = IpStack::new(config, device);
                    while !end.load(Relaxed) {
                        let next = tokio::time::timeout(Duration::from_millis(50), stack.accept()).await;
                        if let Ok(Ok(IpStackStream::Tcp(stream))) = next {
                            let _ = accepted.send(stream);
                        }
                    }
                });
            });
            let (ours, theirs) = tokio::join!(opener.tcp_connect(remote), streams.recv());
            carry(ours.unwrap(), theirs.unwrap(), sends).await
        } else {
            let end = start(2, end_in, back, &ended);
            let listener = end.tcp_listen(PORT).unwrap();
            let (ours, theirs) = tokio::join!(opener.tcp_connect(remote), listener.accept());
            carry(ours.unwrap(), theirs.unwrap(), sends).await
        }
    });
    ended.store(true, Relaxed);
    rate
}

async fn carry(
    opener: impl AsyncRead + AsyncWrite + Unpin,
    end: impl AsyncRead + AsyncWrite + Unpin,
    end_sends: bool,
) -> f64 {
    if end_sends { flow(end, opener).await } else { flow(opener, end).await }
}

async fn flow(mut from: impl AsyncWrite + Unpin, mut to: impl AsyncRead + Unpin) -> f64 {
    let (piece, mut buffer) = (vec![7; 64 << 10], vec![0; 256 << 10]);
    let started = Instant::now();
    let (mut counted, mut since) = (0, None);
    let send = async {
        while from.write_all(&piece).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let receive = async {
        while started.elapsed().as_secs_f64() < SECONDS + LEAD_IN {
            let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(200), to.read(&mut buffer)).await
            else {
                continue;
            };
            if started.elapsed().as_secs_f64() > LEAD_IN {
                since.get_or_insert_with(Instant::now);
                counted += read;
            }
        }
    };
    tokio::select! { () = send => {}, () = receive => {} }
    since.map_or(0.0, |since| counted as f64 * 8.0 / 1e6 / since.elapsed().as_secs_f64())
}

/// A way that takes so long and loses nothing.
fn way(one_way: Duration, to: mpsc::Sender<Packet>) -> mpsc::Sender<Packet> {
    if one_way.is_zero() {
        return to;
    }
    let (sender, under_way) = mpsc::channel::<(Instant, Packet)>();
    thread::spawn(move || {
        while let Ok((due, packet)) = under_way.recv() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.send(packet).is_err() {
                return;
            }
        }
    });
    let (entrance, came) = mpsc::channel();
    thread::spawn(move || {
        while let Ok(packet) = came.recv() {
            if sender.send((Instant::now() + one_way, packet)).is_err() {
                return;
            }
        }
    });
    entrance
}

/// Our stack on a thread.
fn start(
    last: u8,
    arrived: mpsc::Receiver<Packet>,
    out: mpsc::Sender<Packet>,
    ended: &Arc<AtomicBool>,
) -> Network {
    let (mut stack, network) = stack(&[format!("10.0.0.{last}/24").parse().unwrap()], MTU.into()).unwrap();
    let ended = ended.clone();
    thread::spawn(move || {
        let started = Instant::now();
        let mut wire = Wire { out, sent: 0 };
        while !ended.load(Relaxed) {
            turn(&mut stack, &arrived, started, &mut wire);
        }
    });
    network
}

fn turn(stack: &mut Stack, arrived: &mpsc::Receiver<Packet>, started: Instant, wire: &mut Wire) {
    let now = || u64::try_from(started.elapsed().as_micros()).unwrap();
    wire.sent = 0;
    if let Ok(packet) = arrived.recv_timeout(Duration::from_micros(50)) {
        stack.take_in(now(), &packet, wire);
        for packet in arrived.try_iter().take(64) {
            stack.take_in(now(), &packet, wire);
        }
    }
    stack.serve(now(), wire);
}

/// Takes superpackets apart as a lane does.
struct Wire {
    out: mpsc::Sender<Packet>,
    sent: usize,
}

impl Sink for Wire {
    fn has_room(&self) -> bool {
        self.sent < 256
    }

    fn send(&mut self, packet: &[u8], segment: Option<u16>) {
        let vnet = match segment {
            Some(gso_size) => VnetHeader { gso_type: VnetHeader::GSO_TCPV4, gso_size, ..VnetHeader::NONE },
            None => VnetHeader::NONE,
        };
        let inside = Inside::parse(&vnet, packet).unwrap();
        let mut segments = inside.segments(packet);
        let mut out = vec![0; segments.stride()];
        while let Some(len) = segments.next(&mut out) {
            self.sent += 1;
            let _ = self.out.send(out[..len].to_vec());
        }
    }
}

/// What `ipstack` takes for a TUN device.
struct Device {
    arrived: UnboundedReceiver<Packet>,
    back: mpsc::Sender<Packet>,
}

impl AsyncRead for Device {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.arrived.poll_recv(context).map(|packet| {
            to.put_slice(&packet.ok_or(io::ErrorKind::BrokenPipe)?);
            Ok(())
        })
    }
}

impl AsyncWrite for Device {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, packet: &[u8]) -> Poll<io::Result<usize>> {
        let _ = self.back.send(packet.to_vec());
        Poll::Ready(Ok(packet.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
