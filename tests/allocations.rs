//! A visit on established connections allocates nothing on its worker.
//!
//! The server runs inside this process, so that an allocator can count for its worker's thread.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
    thread,
};

use common::{COUNTED, Client, Stub, WELCOME};
use socket2::{Domain, Protocol, Socket, Type};

struct Counting;

/// The thread whose allocations are counted.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static THREAD: Cell<i32> = const { Cell::new(0) };
}

fn count() {
    let watched = WATCHED.load(Ordering::Relaxed);
    if watched == 0 {
        return;
    }
    // The thread-local has no destructor, so it can be asked at any time.
    let thread = THREAD.with(|thread| {
        if thread.get() == 0 {
            thread.set(rustix::thread::gettid().as_raw_nonzero().get());
        }
        thread.get()
    });
    if thread == watched {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The threads of this process that have `name`; each has its name before it serves.
fn threads_named(name: &str) -> BTreeSet<i32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let id = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    threads.filter(named).map(id).collect()
}

#[test]
fn a_visit_allocates_nothing() {
    check("");
    // Whose call may have others too.
    check("?by={n}");
}

/// Visits that are registered by a URL that ends so.
fn check(query: &str) {
    const VISITS: u64 = 4000;
    let others = threads_named("worker-0");
    let stub = Stub::answering(COUNTED);
    // A socket that is bound and does not listen keeps the port for the server to share.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let (listen, url) = (address.to_string(), stub.url() + query);
    thread::spawn(move || {
        tallyring::cli::run_with([
            "tallyring",
            "--listen",
            &listen,
            "--share-port",
            "--counter",
            &url,
            "--workers",
            "1",
            "--admin",
            "off",
        ])
    });
    let mut client = loop {
        match std::net::TcpStream::connect(address) {
            Ok(_) => break Client::connect(address),
            Err(_) => thread::yield_now(),
        }
    };
    let mut visit = || assert_eq!(client.get("/").body, WELCOME);
    // Until buffers and queues have their sizes.
    (0..500).for_each(|_| visit());
    let workers = &threads_named("worker-0") - &others;
    WATCHED.store(*workers.first().expect("a worker"), Ordering::SeqCst);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    (0..VISITS).for_each(|_| visit());
    let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
    // Once a second the pages are rendered again, with some dozens of allocations each. One allocation a visit would
    // be ten times the bound.
    assert!(allocations < VISITS / 10, "{allocations} allocations in {VISITS} visits");
    // The count works: another connection does allocate.
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    assert_eq!(Client::connect(address).get("/").body, WELCOME);
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > before);
}
