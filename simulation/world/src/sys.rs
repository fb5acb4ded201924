//! What `nix::sys` has: system calls on descriptors of the running process.

/// Sockets by their descriptors.
pub mod socket {
    use std::os::fd::RawFd;

    pub use nix::sys::socket::{MsgFlags, Shutdown};
    use nix::{Result, errno::Errno};

    use crate::world::with;

    /// Shuts a socket down, shutdown(2).
    ///
    /// # Errors
    /// `EBADF` where nothing is open.
    pub fn shutdown(descriptor: RawFd, side: Shutdown) -> Result<()> {
        with(|world| {
            let socket = world.socket_of(descriptor).ok_or(Errno::EBADF)?;
            let (read, write) = match side {
                Shutdown::Read => (true, false),
                Shutdown::Write => (false, true),
                Shutdown::Both => (true, true),
            };
            world.shut_down(socket, read, write);
            Ok(())
        })
    }

    /// Looks at what has arrived, recv(2) with `MSG_PEEK` and `MSG_DONTWAIT`.
    ///
    /// # Errors
    /// `EAGAIN` when nothing has arrived.
    ///
    /// # Panics
    /// With other flags.
    pub fn recv(descriptor: RawFd, buffer: &mut [u8], flags: MsgFlags) -> Result<usize> {
        assert_eq!(flags, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT, "no other use is simulated");
        with(|world| {
            let socket = world.socket_of(descriptor).ok_or(Errno::EBADF)?;
            world.peek(socket, buffer).ok_or(Errno::EAGAIN)?.map_err(|_| Errno::ECONNRESET)
        })
    }
}
