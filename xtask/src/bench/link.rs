//! The network between here and the far side: a relay of TCP connections that counts what
//! passes and, for a slow link, delays and limits it.
//!
//! Needs no root and no kernel module, and is the same for everybody who is measured. It has
//! the delay and the rate of a link, and a short queue before it; it has no loss, no slow start
//! and no packets. A connection is there at once, without its round trip.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How much may wait before the link, in time: a router's buffer. Who sends more is held back.
const QUEUE: Duration = Duration::from_millis(50);
/// Bytes taken from a connection at a time, on a slow link and on one without limits.
const PIECE: usize = 8 << 10;
const PIECE_FAST: usize = 128 << 10;
/// Pieces under way at most.
const UNDER_WAY: usize = 4096;

/// What a link can do.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// From one end to the other.
    pub delay: Duration,
    /// Bytes a second in each direction; as many as the machine can, if not given.
    pub rate: Option<f64>,
}

impl Speed {
    /// The machine's own loopback: nothing but counted.
    pub const LAN: Self = Self {
        delay: Duration::ZERO,
        rate: None,
    };
    /// 20 ms there and back, 100 Mbit/s.
    pub const WAN: Self = Self {
        delay: Duration::from_millis(10),
        rate: Some(100e6 / 8.0),
    };
}

/// One direction of a link, shared by all connections.
struct Direction {
    speed: Speed,
    /// When the last byte that was taken will have left.
    free: Mutex<Instant>,
    bytes: AtomicU64,
}

impl Direction {
    fn new(speed: Speed) -> Arc<Self> {
        Arc::new(Self {
            speed,
            free: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
        })
    }

    /// Takes `len` bytes: when they have left, and when they arrive.
    fn take(&self, len: usize, now: Instant) -> (Instant, Instant) {
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        let seconds = self.speed.rate.map_or(0.0, |rate| len as f64 / rate);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(now) + Duration::from_secs_f64(seconds);
        (*free, *free + self.speed.delay)
    }
}

/// A link to a port of this machine; gone when dropped.
pub struct Link {
    port: u16,
    up: Arc<Direction>,
    down: Arc<Direction>,
    stop: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Link {
    /// Whoever connects to [`Link::port`] is connected to `port` over a link of this speed.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn new(port: u16, speed: Speed) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut link = Self {
            port: listener.local_addr()?.port(),
            up: Direction::new(speed),
            down: Direction::new(speed),
            stop: Arc::default(),
            listening: None,
        };
        let far = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (up, down, stop) = (link.up.clone(), link.down.clone(), link.stop.clone());
        link.listening = Some(std::thread::spawn(move || {
            for near in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // Who cannot be connected sees the connection closed, as on any network.
                if let (Ok(near), Ok(far)) = (near, TcpStream::connect(far)) {
                    connect(&near, &far, &up, &down).ok();
                }
            }
        }));
        Ok(link)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that have gone there and come back since it was made.
    pub fn bytes(&self) -> (u64, u64) {
        let count = |direction: &Direction| direction.bytes.load(Ordering::Relaxed);
        (count(&self.up), count(&self.down))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Only to wake it; what is connected ends when either end does.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
        if let Some(thread) = self.listening.take() {
            thread.join().ok();
        }
    }
}

fn connect(
    near: &TcpStream,
    far: &TcpStream,
    up: &Arc<Direction>,
    down: &Arc<Direction>,
) -> std::io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    for (from, to, direction) in [(near, far, up), (far, near, down)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let direction = direction.clone();
        std::thread::spawn(move || pump(from, to, &direction));
    }
    Ok(())
}

/// Carries one direction of one connection to its end.
fn pump(mut from: TcpStream, to: TcpStream, direction: &Direction) {
    let speed = direction.speed;
    if speed.rate.is_none() && speed.delay.is_zero() {
        let mut writer = &to;
        let mut piece = vec![0; PIECE_FAST];
        while let Ok(len @ 1..) = from.read(&mut piece) {
            direction.take(len, Instant::now());
            if writer.write_all(&piece[..len]).is_err() {
                break;
            }
        }
    } else {
        let (sender, receiver) = sync_channel(UNDER_WAY);
        let writer = to.try_clone().map(|to| {
            std::thread::spawn(move || deliver(&receiver, &to));
        });
        let mut piece = vec![0; PIECE];
        while let (Ok(()), Ok(len @ 1..)) = (&writer, from.read(&mut piece)) {
            let now = Instant::now();
            let (left, due) = direction.take(len, now);
            if sender.send((due, piece[..len].to_vec())).is_err() {
                break;
            }
            let wait = left.saturating_duration_since(now);
            std::thread::sleep(wait.saturating_sub(QUEUE));
        }
        // The writer says that it is over when the last of it has arrived.
        return;
    }
    // An end that is gone already needs not be told.
    to.shutdown(Shutdown::Write).ok();
}

fn deliver(pieces: &Receiver<(Instant, Vec<u8>)>, mut to: &TcpStream) {
    for (due, piece) in pieces {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            // Nobody reads any more: whoever writes shall see it.
            to.shutdown(Shutdown::Both).ok();
            return;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it is sent, until it has all of it.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut back = stream.try_clone().unwrap();
                std::thread::spawn(move || {
                    std::io::copy(&mut stream, &mut back).unwrap();
                    back.shutdown(Shutdown::Write).unwrap();
                });
            }
        });
        port
    }

    fn there_and_back(link: &Link, bytes: &[u8]) -> (Vec<u8>, Duration) {
        let start = Instant::now();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut back = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(bytes).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            stream.read_to_end(&mut back).unwrap();
        });
        (back, start.elapsed())
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[test]
    fn everything_arrives_in_order_and_is_counted() {
        for speed in [Speed::LAN, Speed::WAN] {
            let link = Link::new(echo(), speed).unwrap();
            let sent = pattern(300_000);
            assert!(there_and_back(&link, &sent).0 == sent);
            assert_eq!(link.bytes(), (300_000, 300_000));
        }
    }

    #[test]
    fn a_byte_takes_the_delay_each_way() {
        let speed = Speed {
            delay: Duration::from_millis(40),
            rate: None,
        };
        let link = Link::new(echo(), speed).unwrap();
        let (back, took) = there_and_back(&link, b"x");
        assert_eq!(back, b"x");
        assert!(took >= Duration::from_millis(80), "{took:?}");
        assert!(took < Duration::from_secs(4), "{took:?}");
    }

    #[test]
    fn all_connections_share_the_rate() {
        let speed = Speed {
            delay: Duration::ZERO,
            rate: Some(1e6),
        };
        let link = Link::new(echo(), speed).unwrap();
        let sent = pattern(150_000);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert!(there_and_back(&link, &sent).0 == sent));
            }
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(300), "{took:?}");
        assert_eq!(link.bytes(), (300_000, 300_000));
    }

    #[test]
    fn the_link_is_busy_for_as_long_as_the_bytes_take() {
        let direction = Direction::new(Speed {
            delay: Duration::from_millis(10),
            rate: Some(1000.0),
        });
        let now = Instant::now() + Duration::from_secs(1);
        let millis = |at: Instant| at.duration_since(now).as_millis();
        let (left, due) = direction.take(100, now);
        assert_eq!((millis(left), millis(due)), (100, 110));
        let (left, due) = direction.take(50, now);
        assert_eq!((millis(left), millis(due)), (150, 160));
        let later = now + Duration::from_secs(5);
        let (left, _) = direction.take(1, later);
        assert_eq!(millis(left), 5001);
    }
}
