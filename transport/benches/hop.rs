//! What a hop costs: round trips of 16 KiB frames between two endpoints on loopback, next to the
//! bare round trip that UDP and TCP manage on the same machine in the same minute.
//!
//! `cargo bench -p planaria-transport`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a measurement: it stops at the first surprise, and printing is its purpose"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::ClusterKey;
use planaria_transport::{
    Credentials, Endpoint, EndpointConfig, Frame, Identity, Lane, Limits, LinkReceiver, LinkSender,
    LocalHello, memory_pair,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const FRAME: usize = 16 << 10;
const WARM_UP: usize = 300;
const ROUNDS: usize = 3000;

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!("round trips of {FRAME} bytes on loopback, {ROUNDS} of each");
        udp().await;
        tcp().await;
        links().await;
    });
}

async fn udp() {
    let (here, there) = (
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
    );
    here.connect(there.local_addr().unwrap()).await.unwrap();
    there.connect(here.local_addr().unwrap()).await.unwrap();
    let echo = tokio::spawn(async move {
        let mut buffer = vec![0; 2 * FRAME];
        while let Ok(length) = there.recv(&mut buffer).await {
            there.send(&buffer[..length]).await.unwrap();
        }
    });
    let (payload, mut buffer) = (vec![1; FRAME], vec![0; 2 * FRAME]);
    let mut times = Times::new("UDP, bare");
    for _ in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        here.send(&payload).await.unwrap();
        here.recv(&mut buffer).await.unwrap();
        times.add(start.elapsed());
    }
    times.print();
    echo.abort();
}

async fn tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut buffer = vec![0; FRAME];
        while stream.read_exact(&mut buffer).await.is_ok() {
            stream.write_all(&buffer).await.unwrap();
        }
    });
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (payload, mut buffer) = (vec![1; FRAME], vec![0; FRAME]);
    let mut times = Times::new("TCP, bare");
    for _ in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        stream.write_all(&payload).await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        times.add(start.elapsed());
    }
    times.print();
    echo.abort();
}

fn node(name: &str) -> Endpoint {
    let credentials =
        Credentials::derive(&ClusterKey::from_bytes([1; 32]), &Identity::generate().unwrap())
            .unwrap();
    let (info, features) = (Bytes::new(), Vec::new());
    let hello = LocalHello { boot_count: 1, name: name.to_owned(), info, features };
    let listen = ([127, 0, 0, 1], 0).into();
    Endpoint::bind(&credentials, EndpointConfig { listen, hello, limits: Limits::default() })
        .unwrap()
}

async fn links() {
    let (a, b) = (node("a"), node("b"));
    let start = Instant::now();
    let (dialed, accepted) = tokio::join!(a.dial(b.local_addr()), b.accept());
    let handshake = start.elapsed();
    let (at_a, at_b) = (dialed.unwrap(), accepted.unwrap().unwrap());
    let (left, right) = memory_pair(at_b.peer().clone(), at_a.peer().clone());

    let (sender, mut receiver) = left.split();
    let echo = tokio::spawn(echo(right.split()));
    ping("link, in memory", Lane::Activation(1), &sender, &mut receiver).await;
    echo.abort();

    let (sender, mut receiver) = at_a.split();
    tokio::spawn(self::echo(at_b.split()));
    ping("link, QUIC, activation", Lane::Activation(1), &sender, &mut receiver).await;
    ping("link, QUIC, control", Lane::Control, &sender, &mut receiver).await;
    println!("QUIC's own estimate of the round trip: {:?}; handshake: {handshake:?}", sender.rtt());

    let stop = Arc::new(AtomicBool::new(false));
    let bulk = tokio::spawn(flood(sender.clone(), Arc::clone(&stop)));
    ping("link, QUIC, activation under bulk", Lane::Activation(1), &sender, &mut receiver).await;
    ping("link, QUIC, control under bulk", Lane::Control, &sender, &mut receiver).await;
    stop.store(true, Ordering::Relaxed);
    let (bytes, time) = bulk.await.unwrap();
    println!("bulk at the same time: {:.0} MiB/s", mib(bytes) / time.as_secs_f64());

    let stop = Arc::new(AtomicBool::new(false));
    let bulk = tokio::spawn(flood(sender.clone(), Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    let (bytes, time) = bulk.await.unwrap();
    println!("bulk alone: {:.0} MiB/s", mib(bytes) / time.as_secs_f64());
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn ping(what: &'static str, lane: Lane, sender: &LinkSender, receiver: &mut LinkReceiver) {
    let frame =
        Frame { header: Bytes::from_static(b"header"), payload: Bytes::from(vec![1; FRAME]) };
    let mut times = Times::new(what);
    for _ in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        sender.try_send(lane, frame.clone()).unwrap();
        receiver.recv().await.unwrap();
        times.add(start.elapsed());
    }
    times.print();
}

async fn echo((sender, mut receiver): (LinkSender, LinkReceiver)) {
    while let Some(inbound) = receiver.recv().await {
        if inbound.lane != Lane::Bulk {
            sender.try_send(inbound.lane, inbound.frame).unwrap();
        }
    }
}

/// Bytes that were queued, and in what time.
async fn flood(sender: LinkSender, stop: Arc<AtomicBool>) -> (u64, Duration) {
    const CHUNK: usize = 1 << 18;
    let payload = Bytes::from(vec![1; CHUNK]);
    let start = Instant::now();
    let mut bytes = 0;
    while !stop.load(Ordering::Relaxed) {
        let frame = Frame { header: Bytes::new(), payload: payload.clone() };
        sender.send(Lane::Bulk, frame).await.unwrap();
        bytes += CHUNK as u64;
    }
    (bytes, start.elapsed())
}

struct Times {
    what: &'static str,
    times: Vec<Duration>,
}

impl Times {
    fn new(what: &'static str) -> Self {
        Self { what, times: Vec::with_capacity(WARM_UP + ROUNDS) }
    }

    fn add(&mut self, time: Duration) {
        self.times.push(time);
    }

    fn print(self) {
        let mut times = self.times[WARM_UP..].to_vec();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{:36} p50 {:>10.1?}  p99 {:>10.1?}", self.what, at(50), at(99));
    }
}
