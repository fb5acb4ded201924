# The Debian package and its units under a real systemd, in a container of docker/test.sh's.

inside() { docker exec "$project-systemd" bash -c "$1"; }
main_pid() { inside "systemctl show -p MainPID --value tallyring"; }
is_new_pid() { inside "systemctl is-active tallyring" && [ "$(main_pid)" != "$1" ] && served; }
served() { equal "$(inside "curl -sS --max-time 10 '${1:-http://127.0.0.1:3000/}'")" "Welcome to my site!"; }
journal_holds() { holds "$(inside "journalctl --no-pager -u tallyring")" "$1"; }

step "the Debian package"
if ! command -v cargo-deb >/dev/null; then
    # Unoptimized, which takes a third of the time.
    expect "cargo-deb is installed" \
        env CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --debug --locked cargo-deb --root "$scratch/cargo"
    PATH=$scratch/cargo/bin:$PATH
fi
# Of the program that the image has, so that it is built once and has no libraries to depend on.
target=$(uname -m)-unknown-linux-musl
expect "it is made" package/deb.sh "$scratch/tallyring.deb" "$target" "$scratch/tallyring"
under_mb() { [ "$(dpkg-deb --fsys-tarfile "$scratch/tallyring.deb" | tar -xO ./usr/bin/tallyring | wc -c)" -lt $(($1 * 1000000)) ]; }
expect "its program is smaller than 12 MB" under_mb 12
files=$(dpkg-deb -c "$scratch/tallyring.deb")
for file in man/man1/tallyring.1.gz man/man1/tallyring-counter.1.gz bash-completion/completions/tallyring \
    zsh/vendor-completions/_tallyring fish/vendor_completions.d/tallyring.fish \
    doc/tallyring/grafana/tallyring.json doc/tallyring/prometheus/alerts.yml; do
    expect "it has $file" holds "$files" "/usr/share/$file"
done
expect "systemd's image is built" build -f package/test.Dockerfile -t "$project-systemd" package
# As much as systemd needs to set up cgroups and sandboxes. Not --privileged, which asks for
# capabilities that a machine which is itself a guest may not have.
ipv6=()
if [ -e /proc/sys/net/ipv6 ]; then ipv6=(--sysctl net.ipv6.conf.all.disable_ipv6=0); fi
docker run -d --label "$project" --name "$project-systemd" "${ipv6[@]}" --cap-add SYS_ADMIN --cap-add NET_ADMIN \
    --cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
    --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup:rw --tmpfs /run --tmpfs /run/lock \
    "$project-systemd" >/dev/null
expect "systemd runs" within 60 inside "systemctl is-system-running | grep -E 'running|degraded'"
docker cp "$scratch/tallyring.deb" "$project-systemd:/tallyring.deb" >/dev/null
expect "it installs" inside "dpkg -i /tallyring.deb"
expect "the service is ready and a visitor is welcomed" served
if [ ${#ipv6[@]} -gt 0 ]; then
    expect "by IPv6 too" served "http://[::1]:3000/"
else
    echo "NOT RUN: this kernel has no IPv6"
fi
expect "it serves on the socket unit's socket" journal_holds "listening on 1 of the service manager's"
expect "the system-call filter lets it use io_uring" journal_holds 'driver="io_uring ('
expect "it is nobody known" inside "! grep -q '^Uid:.*\b0\b' /proc/$(main_pid)/status"
expect "its file is in its state directory" inside "test -s /var/lib/tallyring/counter.redb"
expect "anybody can ask for its total" inside "test \$(tallyring total) -ge 1"
expect "and back it up" inside "tallyring backup /tmp/backup.redb"
expect "a backup is restored while the service is stopped" inside "systemctl stop tallyring.socket tallyring.service &&
    tallyring restore --data-dir /var/lib/tallyring /tmp/backup.redb && systemctl start tallyring.socket tallyring.service"
expect "and the service counts on" inside "test \$(tallyring total) -ge 1"
expect "as a visitor sees" served
units="/lib/systemd/system/tallyring.service /lib/systemd/system/tallyring.socket"
expect "systemd-analyze verify finds nothing" inside "! systemd-analyze verify $units 2>&1 | grep ."
expect "systemd-analyze security finds an exposure under 1.5" \
    inside "systemd-analyze security --threshold=15 tallyring"

completes() {
    inside "source /usr/share/bash-completion/completions/tallyring; COMP_WORDS=($1); COMP_CWORD=\$((\${#COMP_WORDS[@]} - 1));
        _tallyring tallyring \"\${COMP_WORDS[COMP_CWORD]}\" \"\${COMP_WORDS[COMP_CWORD - 1]}\"; echo \"\${COMPREPLY[*]}\""
}
expect "bash completes its commands" equal "$(completes 'tallyring doc')" doctor
expect "and its flags" equal "$(completes 'tallyring counter --data')" --data-dir
expect "its version says how it was built" holds "$(inside "tallyring --version")" "release for $target"

step "an access log"
inside "echo TALLYRING_ACCESS_LOG=/var/log/tallyring/access.log >>/etc/default/tallyring; systemctl restart tallyring"
expect "a visitor is welcomed" served
logged() { inside "grep -c '\"GET / HTTP/1.1\" 200 ' $1"; }
expect "and has a line" within 5 logged /var/log/tallyring/access.log
expect "logrotate finds nothing wrong" inside "! logrotate -d /etc/logrotate.d/tallyring 2>&1 | grep -iE 'error|insecure'"
pid=$(main_pid)
expect "logrotate rotates it" inside "logrotate -f /etc/logrotate.d/tallyring && test -s /var/log/tallyring/access.log.1"
expect "into a new file" within 5 inside "test -e /var/log/tallyring/access.log"
expect "the next visitor is welcomed" served
expect "and has a line there" within 5 logged /var/log/tallyring/access.log
expect "by the same process" equal "$(main_pid)" "$pid"
inside "sed -i /ACCESS_LOG/d /etc/default/tallyring; systemctl restart tallyring"

step "the journal"
entry() { inside "journalctl --no-pager -u tallyring -o json" | grep -F "$1" | tail -n 1; }
expect "the start's line has priority 6" holds "$(entry ' serves listen=')" '"PRIORITY":"6"'
expect "and no second time stamp" holds "$(entry ' serves listen=')" '"MESSAGE":"tallyring '
inside "echo TALLYRING_COUNTER_CONNECTIONS_MAX=100000000 >>/etc/default/tallyring; systemctl restart tallyring"
expect "journalctl -p warning shows a warning" \
    holds "$(inside "journalctl --no-pager -u tallyring -p warning")" "counter-connections-max is"
inside "sed -i /CONNECTIONS_MAX/d /etc/default/tallyring; systemctl restart tallyring"

step "settings that are wrong"
restarts() { inside "systemctl show -p NRestarts --value tallyring"; }
wrong() { inside "echo TALLYRING_COUNTER_TIMEOUT=soon >>/etc/default/tallyring"; }
mended() { inside "sed -i /COUNTER_TIMEOUT=soon/d /etc/default/tallyring"; }
wrong
pid=$(main_pid)
expect "systemctl reload fails" inside "! systemctl reload tallyring"
expect "and the server goes on" equal "$(main_pid)" "$pid"
expect "systemctl restart fails" inside "! systemctl restart tallyring"
expect "an error says why" \
    holds "$(inside "journalctl --no-pager -u tallyring -p err")" "TALLYRING_COUNTER_TIMEOUT=soon: it must be a time like 250ms, 5s or 1m"
expect "it is not restarted" inside "sleep 3; test \$(systemctl show -p NRestarts --value tallyring) = $(restarts) &&
    test \$(systemctl is-active tallyring) = failed"
for _ in 1 2 3 4 5 6; do inside "systemctl restart tallyring" >/dev/null 2>&1 || true; done
mended
expect "a start after it is mended works, right after seven that failed" inside "systemctl start tallyring"
expect "and a visitor is welcomed" served
wrong
inside "systemctl restart tallyring" >/dev/null 2>&1 || true
docker exec "$project-systemd" curl -sS --max-time 60 http://127.0.0.1:3000/ >"$scratch/waited" 2>&1 &
waiting=$!
expect "the socket outlives a visitor who waits" inside "sleep 5; systemctl is-active tallyring.socket"
mended
wait "$waiting" || true
expect "who is welcomed once it is mended" equal "$(cat "$scratch/waited")" "Welcome to my site!"

step "a restart under load"
docker exec "$project-systemd" wrk -t1 -c16 -d8s http://127.0.0.1:3000/ >"$scratch/load" 2>&1 &
load=$!
for _ in 1 2 3; do
    pid=$(main_pid)
    expect "systemctl restart" inside "sleep 0.5; systemctl restart tallyring"
    expect "another process serves" is_new_pid "$pid"
done
pid=$(main_pid)
expect "an upgrade installs" inside "dpkg -i /tallyring.deb"
expect "and another process serves" is_new_pid "$pid"
expect "systemctl reload" inside "systemctl reload tallyring"
expect "settings and pages are read anew" within 5 journal_holds "SIGHUP: settings and pages were read anew"
wait "$load" || true
expect "wrk has seen no error" bash -c "grep 'requests in' '$scratch/load' && ! grep -E 'Non-2xx|Socket errors' '$scratch/load'"
sed -n 's/^ *\(.*requests in.*\)/        \1/p' "$scratch/load"

step "a server that hangs, and one that dies"
inside "mkdir -p /run/systemd/system/tallyring.service.d &&
    printf '[Service]\nWatchdogSec=2s\n' >/run/systemd/system/tallyring.service.d/test.conf &&
    systemctl daemon-reload && systemctl restart tallyring"
pid=$(main_pid)
expect "it lives on while its workers answer" inside "sleep 4; test \$(systemctl show -p MainPID --value tallyring) = $pid"
inside "kill -STOP $pid"
expect "the watchdog ends one that hangs, and another serves" within 20 is_new_pid "$pid"
expect "systemd says why" journal_holds "Watchdog timeout"
pid=$(main_pid)
inside "kill -KILL $pid"
expect "one that dies is followed by another" within 20 is_new_pid "$pid"

step "a start that fails for a while"
# Seven are more than systemd's own limit lets through, five in ten seconds.
has_failed_often() { [ "$(inside "systemctl show -p NRestarts --value tallyring")" -ge 7 ]; }
inside "echo TALLYRING_ADMIN=192.0.2.1:9300 >>/etc/default/tallyring; systemctl restart --no-block tallyring"
docker exec "$project-systemd" curl -sS --max-time 60 http://127.0.0.1:3000/ >"$scratch/waited" 2>&1 &
waiting=$!
expect "an address that is not there is tried again and again" within 40 has_failed_often
expect "its log says why" journal_holds "192.0.2.1:9300: this machine does not have that address"
expect "the socket stays open" inside "systemctl is-active tallyring.socket"
inside "sed -i /192.0.2.1/d /etc/default/tallyring"
wait "$waiting" || true
expect "who has waited is welcomed" equal "$(cat "$scratch/waited")" "Welcome to my site!"
expect "it is removed" inside "dpkg --purge tallyring"
expect "nobody listens any more" inside "! curl -sS --max-time 5 http://127.0.0.1:3000/"
expect "nothing of it is left" inside "! test -e /var/lib/private/tallyring && ! test -e /var/log/private/tallyring && ! test -e /etc/logrotate.d/tallyring && ! test -e /usr/bin/tallyring"
