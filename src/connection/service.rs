//! What answers requests: the site, the counter's HTTP side, the admin listener.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::Response;
use crate::{access_log::Outcome, http::request::Request};

/// What answers requests.
///
/// ```text
///   Request --admit--> Admitted --start--> Pending --poll_response--> Response
///              |                    |
///              +---> Response       +---> Response        (known at once)
/// ```
///
/// A request is admitted when its head is whole, and started once its body is. Several requests of one client may be
/// started before the first is answered. A request that is dropped before its answer is given up.
pub trait Service: 'static {
    /// A request that will be started, once its body is whole.
    type Admitted: Unpin;
    /// A started request that has no answer yet.
    type Pending: Unpin;
    /// A message from another thread.
    type Message: Send + 'static;

    /// Decides what to do. Nothing happens yet: the body may still turn out malformed.
    ///
    /// # Errors
    /// The answer, if nothing is to be done.
    fn admit(&self, request: &Request<'_>) -> Result<Self::Admitted, Response>;

    /// Whether this request may run at the same time as others of its connection. By default only what is safe may (RFC
    /// 9112 section 9.3.2).
    fn may_overlap(&self, request: &Request<'_>) -> bool {
        request.method.is_safe()
    }

    /// Whether requests that a client has sent, and the worker has not read, are served in a drain too. By default those
    /// that were read are: a client that reads slowly would take as long as it likes.
    fn drains_unread(&self) -> bool {
        false
    }

    /// Does what was decided.
    ///
    /// # Errors
    /// The answer, if it is known at once.
    fn start(&self, admitted: Self::Admitted) -> Result<Self::Pending, Response>;

    /// The answer, once it is ready. Not called again after that.
    fn poll_response(
        &self,
        pending: &mut Self::Pending,
        context: &mut Context<'_>,
    ) -> Poll<Response>;

    /// What became of a request that was admitted, for the access log: of one that was started, as far as it is known;
    /// else of one that has got this answer at once.
    fn outcome(&self, _: Result<&Self::Pending, &Response>) -> Outcome {
        Outcome::UNCOUNTED
    }

    /// Takes a message from another thread.
    fn on_message(&self, message: Self::Message);

    /// Ends its own waits whose deadlines have passed. Called several times within its shortest deadline.
    fn expire(&self) {}
}

/// The content of a [stream](Response::stream): pieces that come for as long as it lasts.
pub trait Feed: 'static {
    /// The next piece, or `None` at the end. Asked for again only when the piece before was written: a client that
    /// takes none keeps no more than one waiting.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;
}
