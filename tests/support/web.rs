//! A web server with one file, which has ranges or does not.
//!
//! It knows nothing of archives. The idea: an answer for each connection, counted, with an entity tag that changes with the file.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Whether a range is given to who asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// As RFC 9110 has it.
    Given,
    /// The whole file comes, whatever is asked for.
    Ignored,
}

/// A server that runs until the process ends. The file is at every path but those that end with `none`.
pub(crate) struct Web {
    address: String,
    state: Arc<State>,
}

struct State {
    ranges: Ranges,
    /// The file, and how often it was put.
    file: Mutex<(Arc<Vec<u8>>, u64)>,
    requests: AtomicU64,
    sent: AtomicU64,
    /// Answers that break off in the middle, before all others.
    cut: AtomicU64,
}

impl Web {
    /// A server with an empty file.
    pub(crate) fn serve(ranges: Ranges) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = Arc::new(State {
            ranges,
            file: Mutex::default(),
            requests: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        });
        let serving = state.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = serving.clone();
                // Who asked may hang up.
                thread::spawn(move || answer(connection, &state).ok());
            }
        });
        Self { address, state }
    }

    /// Replaces the file.
    pub(crate) fn put(&self, bytes: Vec<u8>) {
        let mut file = self.state.file.lock().expect("no server panics");
        *file = (Arc::new(bytes), file.1 + 1);
    }

    /// Breaks off so many answers in the middle.
    pub(crate) fn cut(&self, answers: u64) {
        self.state.cut.store(answers, Ordering::Relaxed);
    }

    /// The address of the file under a name.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// How many requests came.
    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// How many bytes of the file were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }
}

fn answer(mut connection: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if connection.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    state.requests.fetch_add(1, Ordering::Relaxed);
    let target = head.split(' ').nth(1).unwrap_or_default();
    if target.split('?').next().is_some_and(|path| path.ends_with("none")) {
        return connection
            .write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    }
    let (file, version) = state.file.lock().expect("no server panics").clone();
    let asked = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let range = value.trim().strip_prefix("bytes=").filter(|_| name.eq_ignore_ascii_case("range"))?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let (status, range, body) = match asked.filter(|_| state.ranges == Ranges::Given) {
        Some((first, last)) if first < file.len() => {
            let end = (last + 1).min(file.len());
            let range = format!("Content-Range: bytes {first}-{}/{}\r\n", end - 1, file.len());
            ("206 Partial Content", range, &file[first..end])
        }
        Some(_) => {
            let range = format!("Content-Range: bytes */{}\r\n", file.len());
            ("416 Range Not Satisfiable", range, &file[..0])
        }
        None => ("200 OK", String::new(), &file[..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"{version}\"\r\n{range}Content-Length: {}\r\n\r\n",
        body.len()
    );
    state.sent.fetch_add(body.len() as u64, Ordering::Relaxed);
    connection.write_all(head.as_bytes())?;
    let is_cut =
        state.cut.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cut| cut.checked_sub(1)).is_ok();
    connection.write_all(if is_cut { &body[..body.len() / 2] } else { body })
}
