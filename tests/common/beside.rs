//! A counter that fails, beside one that works.

use super::{Books, COUNTED, Client, Server, Stub, WELCOME, serve_by};

/// One worker with two pages: the visits of `/` go to the counter at `url`, those of `/well` to one that always
/// works.
pub struct Site {
    pub server: Server,
    /// Visits `/well`; and how often it did.
    neighbour: Client,
    neighbour_visits: usize,
    _well: Stub,
}

impl Site {
    pub fn start(url: &str, flags: &[&str]) -> Self {
        let well = Stub::answering(COUNTED);
        let file = format!(
            "workers = 1\n[[route]]\npath = \"/\"\ncounter = \"{url}\"\n\
             [[route]]\npath = \"/well\"\ncounter = \"{}\"\n",
            well.url()
        );
        let mut all = vec!["--workers", "1"];
        all.extend(flags);
        let server = serve_by(&file, &all);
        Self { neighbour: server.client(), server, neighbour_visits: 0, _well: well }
    }

    /// The counter beside the one that fails still works.
    #[track_caller]
    pub fn check_neighbour(&mut self) {
        assert_eq!(self.neighbour.get("/well").body, WELCOME);
        self.neighbour_visits += 1;
    }

    /// Stops it; it must have welcomed and erred so many visits of `/`.
    #[track_caller]
    pub fn check_total(mut self, welcomed: usize, erred: usize) {
        drop(self.neighbour);
        let line = self.server.stop();
        let welcomed = welcomed + self.neighbour_visits;
        let Books { welcomed: said, erred: said_erred, refused, .. } = Books::read(&line);
        let expected = (welcomed as u64, erred as u64, 0);
        assert_eq!((said, said_erred, refused), expected, "{line}");
    }
}
