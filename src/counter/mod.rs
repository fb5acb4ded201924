//! The bundled counter: numbers that go up, kept on disk, behind `POST /counter`.
//!
//! Its HTTP side is a service like the site; its commits run on a separate thread. While one commit is written to the
//! disk, operations gather for the next, so that many visits share one commit. Knows nothing of the site.

mod committer;
mod frontend;
mod group_commit;
pub mod store;

pub use self::{
    committer::{Batch, Committer, Job, OutcomeSink},
    frontend::{HttpFrontend, is_name},
    group_commit::COMMIT_TIMEOUT,
};
