//! What a person is told who has given something wrong, and TLS and users that are right.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    PREFIX,
    common::{PATIENCE, nobody, run},
    counter,
    member::{Member, prepare, program, single, url},
};

/// A start with this store fails and says this, and so does the doctor; none tells the password.
#[track_caller]
fn check_refused(store: &str, words: &str) {
    for arguments in [
        &["counter", "--listen", "127.0.0.1:0", "--store", store][..],
        &["doctor", "--listen", "127.0.0.1:0", "--admin", "off", "--store", store],
    ] {
        let (code, out, told) = run(arguments);
        let told = format!("{out}{told}");
        assert!(told.contains(words), "{arguments:?}: {code}: {told}");
        assert!(!told.contains("s3cret"), "{told}");
        if arguments[0] == "counter" {
            // What may be over in a moment is waited for, and that is told too.
            let lines: Vec<_> = told.lines().filter(|line| !line.contains("waiting for")).collect();
            assert!(code != 0 && lines.len() == 1, "{code}: {told}");
        }
    }
}

fn of(member: &Member) -> String {
    url(std::slice::from_ref(member), PREFIX)
}

#[test]
fn a_wrong_address_is_told() {
    let Some(program) = program("a_wrong_address_is_told") else { return };
    let member = single(&program, &[]);
    check_refused(&of(&member).replace("etcd:", "etcds:"), "write etcd:// in place of etcds://");
    check_refused(&format!("etcd://{}", member.peers()), "not etcd 3.4 or newer");
    member.put("/foreign/shards/a", "hello");
    check_refused(&of(&member).replace(PREFIX, "/foreign"), "tallyring has not written");
    member.put("/later/format", "2");
    check_refused(&of(&member).replace(PREFIX, "/later"), "later version of tallyring");
    // A store among the keys of another one, and around them.
    drop(counter(&of(&member).replace(PREFIX, "/n"), "a"));
    for inner in ["/n/totals", "/n/shards/x", "/n/totals/x"] {
        let words = "its keys would be among those of a store with the prefix /n;";
        check_refused(&of(&member).replace(PREFIX, inner), words);
        assert!(member.keys(&format!("{inner}/")).iter().all(|(key, _)| !key.ends_with("format")));
    }
    member.put("/m/totals/format", "1");
    check_refused(
        &of(&member).replace(PREFIX, "/m"),
        "/m/totals/format is no value that tallyring has written here",
    );
    check_refused(&of(&member).replace(PREFIX, "/m"), "remove its keys by etcdctl del --prefix");
    // One that was made before that was refused is used.
    drop(counter(&of(&member).replace(PREFIX, "/m/totals"), "a"));
    drop(counter(&of(&member).replace(PREFIX, "/totals"), "a"));
    let host = member.address;
    check_refused(&format!("etcd://{host}/a b"), "its prefix must be");
    check_refused(&format!("etcd://me:s3cret@{host}:x/a"), "its port");
    check_refused(&format!("etcd://me:s3cret@{host}/a"), "leave the user out of the URL");
}

#[test]
fn a_member_that_does_not_run_is_told() {
    let store = format!("etcd://me:s3cret@{}/a", nobody());
    let (_, out, told) =
        run(&["doctor", "--listen", "127.0.0.1:0", "--admin", "off", "--store", &store]);
    assert!(format!("{out}{told}").contains("Connection refused"), "{out}{told}");
    assert!(!format!("{out}{told}").contains("s3cret"), "{out}{told}");
}

/// Answers each request with this content.
fn impostor(content: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = client.read(&mut head);
            let length = content.len();
            let _ = write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{content}");
        }
    });
    address
}

#[test]
fn an_old_version_is_told() {
    let old = impostor(r#"{"version":"3.3.27","leader":"5"}"#);
    check_refused(&format!("etcd://{old}"), "3.4 or newer is needed");
}

#[test]
fn users_have_passwords_and_rights() {
    let Some(program) = program("users_have_passwords_and_rights") else { return };
    let member = single(&program, &[]);
    let ask = |path: &str, question| member.ask(path, question);
    let range = json!({
        "permType": "READWRITE",
        "key": STANDARD.encode("/site/"),
        "range_end": STANDARD.encode("/site0"),
    });
    for (user, role) in [("root", "root"), ("me", "site"), ("other", "none")] {
        ask("/v3/auth/role/add", json!({ "name": role }));
        ask("/v3/auth/user/add", json!({ "name": user, "password": "s3cret" }));
        ask("/v3/auth/user/grant", json!({ "user": user, "role": role }));
    }
    ask("/v3/auth/role/grant", json!({ "name": "site", "perm": range }));
    ask("/v3/auth/enable", json!({}));
    let host = member.address;
    check_refused(&of(&member), "it asks who this is");
    check_refused(&format!("etcd://me:s3cret2@{host}/site"), "correct the user and the password");
    check_refused(&format!("etcd://other:s3cret@{host}/site"), "grant-permission");
    check_refused(&format!("etcd://me:s3cret@{host}/elsewhere"), "grant-permission");
    let server = counter(&format!("etcd://me:s3cret@{host}/site"), "a");
    assert!(!server.line.contains("s3cret"), "{}", server.line);
    let mut client = server.client();
    client.send(crate::load::ADD);
    assert_eq!(client.response().body, "1\n");
}

/// Two clusters in one URL.
#[test]
fn members_of_two_clusters_are_told() {
    let Some(program) = program("members_of_two_clusters_are_told") else { return };
    let [one, other] = [(); 2].map(|()| single(&program, &[]));
    let store = format!("etcd://{},{}/site", one.address, other.address);
    let words = "its members belong to several etcd clusters: ";
    // A member that is slow to answer is not waited for, so it is seen by one of the next starts.
    let arguments = ["doctor", "--listen", "127.0.0.1:0", "--admin", "off", "--store", &store];
    let began = Instant::now();
    let told = loop {
        let (_, out, error) = run(&arguments);
        if out.contains(words) {
            break out;
        }
        assert!(began.elapsed() < PATIENCE, "{out}{error}");
    };
    assert!(told.contains("name the members of one cluster only"), "{told}");
    assert!(told.contains(&format!("{} of ", other.address)), "{told}");
}

/// A counter that has begun to count in one cluster leaves the member of another one alone.
#[test]
fn a_counter_does_not_go_to_another_cluster() {
    let Some(program) = program("a_counter_does_not_go_to_another_cluster") else { return };
    let mut one = single(&program, &[]);
    let mut other = single(&program, &[]);
    other.kill();
    let server = counter(&format!("etcd://{},{}/site", one.address, other.address), "a");
    let mut client = server.client();
    client.send(crate::load::ADD);
    assert_eq!(client.response().body, "1\n");
    one.kill();
    other.start();
    other.wait_until_writable();
    client.send(crate::load::ADD);
    assert_eq!(client.response().status, 503);
    assert!(other.keys("/site/").is_empty());
    one.start();
    one.wait_until_writable();
    let added = std::iter::repeat_with(|| {
        client.send(crate::load::ADD);
        client.response()
    });
    let added = added.take(100).find(|response| response.status == 200);
    assert!(added.is_some() && other.keys("/site/").is_empty());
}

/// A counter whose cluster was replaced by another one says so, and counts there after a restart.
#[test]
fn a_cluster_that_was_replaced_is_told() {
    let Some(program) = program("a_cluster_that_was_replaced_is_told") else { return };
    let mut member = single(&program, &[]);
    let server = counter(&of(&member), "a");
    let mut client = server.client();
    client.send(crate::load::ADD);
    assert_eq!(client.response().body, "1\n");
    member.replace();
    client.send(crate::load::ADD);
    assert_eq!(client.response().status, 503);
    server.wait_for_line("restart the counter if etcd was restored or made anew");
    drop(server);
    let server = counter(&of(&member), "a");
    let mut client = server.client();
    client.send(crate::load::ADD);
    assert_eq!(client.response().body, "1\n");
}

/// Passes on what one client says, and keeps it.
fn listener_before(member: SocketAddr) -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, said) = (listener.local_addr().unwrap(), Arc::<Mutex<String>>::default());
    let heard = Arc::clone(&said);
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut server = TcpStream::connect(member).unwrap();
            let (mut back, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let heard = Arc::clone(&heard);
            thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    *heard.lock().unwrap() += &String::from_utf8_lossy(&buffer[..count]);
                    if server.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    (address, said)
}

#[test]
fn a_counter_signs_in_at_one_member() {
    let Some(program) = program("a_counter_signs_in_at_one_member") else { return };
    let member = single(&program, &[]);
    with_root(&member);
    // Several ways to one member are several members to the counter.
    let ways = [0; 3].map(|_| listener_before(member.address));
    let hosts = ways.each_ref().map(|(address, _)| address.to_string()).join(",");
    let server = counter(&format!("etcd://root:s3cret@{hosts}/site"), "a");
    let mut client = server.client();
    client.send(crate::load::ADD);
    assert_eq!(client.response().body, "1\n");
    let said = ways.map(|(_, said)| said.lock().unwrap().clone());
    let count = |path: &str| said.each_ref().map(|said| said.matches(path).count());
    let connects = count("/v3/maintenance/status");
    let sign_ins = count("/v3/auth/authenticate").iter().sum::<usize>();
    // A machine that is slow may need another connect.
    assert!(connects.iter().all(|connects| *connects > 0), "{connects:?}");
    assert!((1..=*connects.iter().max().unwrap()).contains(&sign_ins), "{connects:?} {sign_ins}");
}

fn with_root(member: &Member) {
    for (path, question) in [
        ("/v3/auth/role/add", json!({ "name": "root" })),
        ("/v3/auth/user/add", json!({ "name": "root", "password": "s3cret" })),
        ("/v3/auth/user/grant", json!({ "user": "root", "role": "root" })),
        ("/v3/auth/enable", json!({})),
    ] {
        member.ask(path, question);
    }
}

#[test]
fn a_token_that_ends_is_renewed() {
    let Some(program) = program("a_token_that_ends_is_renewed") else { return };
    let mut member = single(&program, &[]);
    with_root(&member);
    let server = counter(&format!("etcd://root:s3cret@{}/site", member.address), "a");
    let mut client = server.client();
    for total in 1..4 {
        client.send(crate::load::ADD);
        assert_eq!(client.response().body, format!("{total}\n"));
        // A member forgets its tokens.
        member.kill();
        member.start();
    }
}

#[test]
fn tls_has_certificates() {
    let Some(program) = program("tls_has_certificates") else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    make_certificates(directory.path());
    let (ca, cert, key) = (path("ca.pem"), path("server.pem"), path("server.key"));
    let flags =
        ["--cert-file", &cert, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file", &ca];
    let mut member = prepare(&program, 1, &flags, |address| address).remove(0);
    member.start();
    member.wait_for_port();
    let host = member.address;
    let plain = format!("etcd://{host}/site");
    check_refused(&plain, "write etcds:// in place of etcd://");
    let (client_cert, client_key) = (path("client.pem"), path("client.key"));
    check_refused(&format!("etcds://{host}/site?cacert={ca}"), "by cert=FILE and key=FILE");
    check_refused(
        &format!("etcds://{host}/site?cacert={client_cert}&cert={client_cert}&key={client_key}"),
        "give the authority by cacert=FILE",
    );
    let missing = path("missing.pem");
    check_refused(&format!("etcds://{host}/site?cacert={missing}"), "cannot read cacert");
    let store = format!("etcds://{host}/site?cacert={ca}&cert={client_cert}&key={client_key}");
    let server = counter(&store, "a");
    let mut client = server.client();
    client.send(crate::load::ADD);
    assert_eq!(client.response().body, "1\n");
    fs::remove_file(&ca).unwrap();
}

/// An authority, and certificates of a server at 127.0.0.1 and of a client.
fn make_certificates(directory: &std::path::Path) {
    let openssl = |arguments: &str| {
        let mut command = std::process::Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {new} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"));
    fs::write(directory.join("server.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    fs::write(directory.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for name in ["server", "client"] {
        openssl(&format!("req -new {new} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 \
             -extfile {name}.ext"
        ));
    }
}
