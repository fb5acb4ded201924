//! A bare io_uring loop on one thread, with one deadline.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::fd::{AsRawFd, IntoRawFd, RawFd},
    sync::atomic::{AtomicU16, Ordering},
    time::Instant,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use socket2::{Domain, Socket, Type};

/// Buffers that the kernel receives into; a power of two.
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: u32 = 1024;
const GROUP: u16 = 0;

/// A program that runs on the loop.
pub trait Program {
    /// The loop is about to begin.
    fn begin(&mut self, _io: &mut Io) {}
    /// A connection was accepted.
    fn accepted(&mut self, io: &mut Io, socket: RawFd) {
        io.receive(socket);
    }
    /// Bytes were received.
    fn received(&mut self, io: &mut Io, socket: RawFd, bytes: &[u8]);
    /// The peer closed, or the connection failed.
    fn closed(&mut self, io: &mut Io, socket: RawFd);
    /// When [`look`](Self::look) must be called next at the latest.
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// The deadline may have passed. Called once in each turn of the loop, before its completions.
    fn look(&mut self, _io: &mut Io) {}
    /// All completions of this turn of the loop have been handled.
    fn turn_ended(&mut self, _io: &mut Io) {}
    /// Whether the loop should end.
    fn is_done(&self) -> bool {
        false
    }
}

/// Takes operations.
pub struct Io {
    ring: IoUring,
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Op {
    Accept,
    Receive,
    Send,
}

impl Io {
    fn push(&mut self, op: Op, socket: RawFd, entry: squeue::Entry) {
        let entry = entry.user_data((op as u64) << 32 | u64::from(socket.unsigned_abs()));
        loop {
            // SAFETY: what the entries point to is static, or owned by the kernel's side.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            let _ = self.ring.submit();
        }
    }

    /// Sends static bytes, all of them: a part of a write would be a success that nobody hears of.
    pub fn send(&mut self, socket: RawFd, bytes: &'static [u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(types::Fd(socket), bytes.as_ptr(), length)
            .flags(libc::MSG_WAITALL)
            .build();
        // Only failures are heard of.
        self.push(Op::Send, socket, entry.flags(squeue::Flags::SKIP_SUCCESS));
    }

    /// Closes the sending side after what was sent before.
    pub fn finish(&mut self, socket: RawFd) {
        let entry = opcode::Shutdown::new(types::Fd(socket), libc::SHUT_WR).build();
        self.push(Op::Send, socket, entry.flags(squeue::Flags::SKIP_SUCCESS));
    }

    /// Receives on a connection until it ends.
    pub fn receive(&mut self, socket: RawFd) {
        let entry = opcode::RecvMulti::new(types::Fd(socket), GROUP).build();
        self.push(Op::Receive, socket, entry);
    }

    /// Waits for a completion, at most until `deadline`.
    fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        let waited = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => self.ring.submitter().submit_and_wait(1),
            Some(rest) => {
                let rest = types::Timespec::from(rest);
                let until = types::SubmitArgs::new().timespec(&rest);
                self.ring.submitter().submit_with_args(1, &until)
            }
        };
        match waited.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) | Err((Some(libc::EINTR | libc::ETIME | libc::EBUSY), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn accept(&mut self, listener: RawFd) {
        let entry = opcode::AcceptMulti::new(types::Fd(listener)).build();
        self.push(Op::Accept, listener, entry);
    }
}

/// Opens a connection, blocking; for the start of a program.
///
/// # Errors
/// What connect(2) says.
pub fn connect(address: impl ToSocketAddrs) -> io::Result<RawFd> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream.into_raw_fd())
}

/// Listens, sharing the port with other threads and processes.
///
/// # Errors
/// What bind(2) and listen(2) say.
pub fn listen(address: &str) -> io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Runs `program` until it is done; with `listener`, it accepts connections.
///
/// # Errors
/// When the ring cannot be set up.
pub fn run(listener: Option<&TcpListener>, program: &mut impl Program) -> io::Result<()> {
    let ring = IoUring::builder()
        .setup_cqsize(16 * 1024)
        .setup_coop_taskrun()
        .setup_single_issuer()
        .build(4096)?;
    let mut io = Io { ring };
    let mut buffers = BufferRing::register(&io.ring)?;
    if let Some(listener) = listener {
        io.accept(listener.as_raw_fd());
    }
    program.begin(&mut io);
    let mut completions: Vec<cqueue::Entry> = Vec::with_capacity(16 * 1024);
    while !program.is_done() {
        io.wait(program.deadline())?;
        program.look(&mut io);
        completions.extend(io.ring.completion());
        for completion in completions.drain(..) {
            let socket = (completion.user_data() & 0xffff_ffff) as RawFd;
            let (result, flags) = (completion.result(), completion.flags());
            match completion.user_data() >> 32 {
                op if op == Op::Accept as u64 => {
                    if result >= 0 {
                        program.accepted(&mut io, result);
                    }
                    if let (false, Some(listener)) = (cqueue::more(flags), listener) {
                        io.accept(listener.as_raw_fd());
                    }
                }
                op if op == Op::Receive as u64 => {
                    if let (Some(buffer), 1..) = (cqueue::buffer_select(flags), result) {
                        let length = result.unsigned_abs() as usize;
                        program.received(&mut io, socket, buffers.bytes(buffer, length));
                        buffers.give_back(buffer);
                    }
                    if !cqueue::more(flags) {
                        if result > 0 || result == -libc::ENOBUFS {
                            io.receive(socket);
                        } else {
                            program.closed(&mut io, socket);
                            // SAFETY: the program gave the socket to the loop, and it ends here.
                            unsafe { libc::close(socket) };
                        }
                    }
                }
                _ => {}
            }
        }
        program.turn_ended(&mut io);
    }
    Ok(())
}

/// Buffers provided to the kernel by a shared ring, io_uring_register_buf_ring(3).
struct BufferRing {
    memory: Vec<u8>,
    entries: *mut types::BufRingEntry,
    tail: u16,
}

impl BufferRing {
    fn register(ring: &IoUring) -> io::Result<Self> {
        let bytes = usize::from(BUFFERS) * size_of::<types::BufRingEntry>();
        // SAFETY: a new anonymous mapping, page-aligned as the kernel demands, never unmapped.
        let entries = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping has room for that many entries and outlives the ring.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)?;
        };
        let memory = vec![0; usize::from(BUFFERS) * BUFFER_BYTES as usize];
        let mut buffers = Self { memory, entries: entries.cast(), tail: 0 };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        &self.memory[usize::from(buffer) * BUFFER_BYTES as usize..][..length]
    }

    fn give_back(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (BUFFERS - 1));
        let start = usize::from(buffer) * BUFFER_BYTES as usize;
        // SAFETY: the place is within the mapping, and the kernel does not look at it before the
        // tail says so.
        unsafe {
            let entry = &mut *self.entries.add(place);
            entry.set_addr(self.memory[start..].as_mut_ptr() as u64);
            entry.set_len(BUFFER_BYTES);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            let tail = types::BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
