//! The bundled counter: numbers that go up, kept on disk, behind `POST /counter`.
//!
//! Its HTTP side is a service like the site; its commits run on a thread of their own. While one commit is
//! on its way to the disk, the operations that arrive gather for the next, so that the rate is bound
//! by commits and not by visits. Knows nothing of the site.

mod committer;
mod frontend;
mod group_commit;
pub mod store;

pub use self::{
    committer::{Batch, Committer, Job, OutcomeSink},
    frontend::{HttpFrontend, is_name},
    group_commit::COMMIT_TIMEOUT,
};
