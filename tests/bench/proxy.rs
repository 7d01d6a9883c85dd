//! A TCP proxy on a loopback port that delivers every byte a fixed time later than it came: latency without a slow link.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Result;

/// How many pieces of up to 64 KiB are under way in one direction of a connection: 64 MiB, more than any link here holds.
const UNDER_WAY: usize = 1024;

/// Ends on drop; connections end with their peers.
pub(crate) struct Proxy {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    /// One in front of `target`, with so much delay each way.
    pub(crate) fn new(target: &str, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let target = target.to_owned();
        let stop = Arc::clone(&ended);
        let listening = thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // A connection that cannot be made is one that the client sees closed.
                let Ok(client) = client else { continue };
                let target = target.clone();
                thread::spawn(move || connect(client, &target, delay));
            }
        });
        Ok(Self { address, ended, listening: Some(listening) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the listener, which then sees that it has ended.
        TcpStream::connect(self.address).ok();
        if let Some(listening) = self.listening.take() {
            listening.join().ok();
        }
    }
}

fn connect(client: TcpStream, target: &str, delay: Duration) {
    // The handshake costs a round trip too.
    thread::sleep(delay * 2);
    let Ok(server) = TcpStream::connect(target) else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { return };
    carry(from_client, server, delay);
    carry(from_server, client, delay);
}

/// Carries one direction: a thread that reads and stamps, and one that writes what is due.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (send, receive) = mpsc::sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    thread::spawn(move || {
        let mut buf = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buf) {
            if send.send((Instant::now() + delay, buf[..len].to_vec())).is_err() {
                // The other side went away: its peer must not wait for an answer.
                from.shutdown(Shutdown::Both).ok();
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receive {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Write).ok();
    });
}
