# The checks of docker/test.sh, which brings the image and the words that are used here.

setting() { docker image inspect -f "$1" "$image"; }

step "the image"
expect "it is smaller than 20 MB" under "$(setting '{{.Size}}')" 20000000
echo "        $(setting '{{.Size}}') bytes"
expect "its user is a number and not root" equal "$(setting '{{.Config.User}}')" 65532:65532
expect "it is stopped by SIGTERM" equal "$(setting '{{.Config.StopSignal}}')" SIGTERM
expect "it runs the program without a shell" equal "$(setting '{{json .Config.Entrypoint}}')" '["/tallyring"]'
expect "it checks its health by itself" \
    equal "$(setting '{{json .Config.Healthcheck.Test}}')" '["CMD","/tallyring","health"]'
expect "it has one volume" equal "$(setting '{{json .Config.Volumes}}')" '{"/var/lib/tallyring":{}}'
expect "it exposes the site's port" equal "$(setting '{{json .Config.ExposedPorts}}')" '{"3000/tcp":{}}'
expect "it says what it is" holds "$(setting '{{json .Config.Labels}}')" org.opencontainers.image.title

step "the profiles"
expect "seccomp.json is Docker's default and the three calls" python3 - <<'END'
import hashlib, pathlib
# Of github.com/moby/profiles/seccomp v0.1.0, default.json, as Docker 28 has it.
DEFAULT = "01536f1d1df938ae611eba20d6349e0de7a99b6ecdee1549427a0b01b8301e28"
lines = pathlib.Path("docker/seccomp.json").read_text().split("\n")
added = [line.strip(' \t",') for line in lines if "io_uring" in line]
rest = "\n".join(line for line in lines if "io_uring" not in line)
assert added == ["io_uring_enter", "io_uring_register", "io_uring_setup"], added
assert hashlib.sha256(rest.encode()).hexdigest() == DEFAULT, "the rest is not Docker's default"
END
expect "seccomp-kubernetes.json is made from it" \
    diff docker/seccomp-kubernetes.json <(docker/seccomp-kubernetes.py)
grep -v io_uring docker/seccomp.json >"$scratch/eperm.json"
python3 - "$scratch" <<'END'
import json, sys
profile = json.load(open(sys.argv[1] + "/eperm.json"))
names = ["io_uring_enter", "io_uring_register", "io_uring_setup"]
profile["syscalls"].append({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
json.dump(profile, open(sys.argv[1] + "/enosys.json", "w"))
END

step "docker run -p 3000:3000, with no further option"
docker run -d --label "$project" --name "$project-default" -p 3000:3000 "$image" >/dev/null
expect "it starts" within 30 started default
expect "a visitor is welcomed" \
    equal "$(curl -sS --max-time 10 http://localhost:3000/)" "Welcome to my site!"
expect "it turns healthy" within 30 health_is default healthy
if [ "$(docker version -f '{{.Server.Version}}' | cut -d. -f1)" -ge 25 ]; then
    expect "its log names the option" log_holds default "--security-opt seccomp=docker/seccomp.json"
else
    # Older engines allow io_uring; the profile of newer ones is tried below.
    expect "its log says io_uring" log_holds default "by io_uring ("
fi
expect "it has no capability" equal "$(field default CapEff)" 0000000000000000
expect "the profile can be copied out" \
    docker cp "$project-default:/usr/share/tallyring/seccomp.json" "$scratch/copied.json"
expect "it stops with 0" stops default
expect "its last line counts the visit" log_holds default "stopped: 1 visit welcomed, 0 erred"
docker start "$project-default" >/dev/null
expect "it starts again" within 30 health_is default healthy
remove default

step "the commands of docs/containers.md"
# The one that keeps the total, with names of our own.
volume=$project-volume
documented_run() {
    local command
    command=$(grep '^docker run .*-v ' docs/containers.md | sed -e 's/ *#.*//' -e "s/--name tallyring/--name $project-$1 --label $project/" \
        -e "s/-v tallyring:/-v $volume:/" -e "s/ tallyring$/ $image/")
    holds "$command" "-v $volume:/var/lib/tallyring" && holds "$command" "$image" && bash -c "$command"
}
# Of the volume, when no server has it.
total_in_volume() {
    docker run -d --label "$project" --name "$project-total" -v "$volume:/var/lib/tallyring" "$image" \
        counter --listen 0.0.0.0:3001 >/dev/null
    within 30 curl -sS --max-time 10 "http://$(address total):3001/counter"
    equal "$(curl -sS --max-time 10 "http://$(address total):3001/counter" | tr -d '[:space:]')" "$1"
}
for count in 1 2; do
    expect "start $count: the server runs" documented_run "documented-$count"
    expect "start $count: it turns healthy" within 30 health_is "documented-$count" healthy
    expect "start $count: a visitor is welcomed" \
        equal "$(curl -sS --max-time 10 http://localhost:3000/)" "Welcome to my site!"
    expect "start $count: the total is told" \
        equal "$(docker exec "$project-documented-$count" /tallyring total)" "$count"
    backup=/var/lib/tallyring/backup.redb
    expect "start $count: it is backed up while it runs" \
        docker exec "$project-documented-$count" /tallyring backup --force "$backup"
    expect "start $count: the backup can be copied out" \
        docker cp "$project-documented-$count:$backup" "$scratch/backup.redb"
    remove "documented-$count"
done
expect "the total outlives the containers" total_in_volume 2
remove total
expect "a volume without a server can be asked for its total" equal \
    "$(docker run --rm --label "$project" -v "$volume:/var/lib/tallyring" "$image" total)" 2
expect "and be restored" docker run --rm --label "$project" -v "$volume:/var/lib/tallyring" "$image" restore "$backup"
expect "after which it has the total" total_in_volume 2
remove total
docker volume rm "$volume" >/dev/null

step "profiles that refuse io_uring, and those that do not"
for error in eperm enosys; do
    start "$error" --security-opt "seccomp=$scratch/$error.json"
    runs_on "$error" epoll
    expect "$error: its log names the error" log_holds "$error" "(${error^^})"
    expect "$error: its log names the option" \
        log_holds "$error" "--security-opt seccomp=docker/seccomp.json"
    remove "$error"
done
for profile in seccomp seccomp-kubernetes; do
    start "$profile" --security-opt "seccomp=docker/$profile.json"
    runs_on "$profile" io_uring
    remove "$profile"
done

step "limits"
shipped=(--security-opt seccomp=docker/seccomp.json)
start memlock "${shipped[@]}" --ulimit memlock=65536
expect "memlock: a visitor is welcomed" visit_is memlock
expect "memlock: its log says on what" log_holds memlock "by io_uring ("
docker restart "$project-memlock" >/dev/null
# The kernel gives the memory of the rings back some time after they are closed.
rings_again() { equal "$(log memlock | grep -c 'by io_uring (')" 2; }
expect "memlock: a restart finds the memory again" within 30 rings_again
remove memlock
start bare "${shipped[@]}" --read-only --cap-drop ALL --user 12345
runs_on bare io_uring
expect "bare: it runs as that user" equal "$(field bare Uid | cut -f1)" 12345
expect "bare: nothing can give it a capability" equal "$(field bare CapBnd)" 0000000000000000
expect "bare: it stops with 0" stops bare
remove bare
start quota "${shipped[@]}" --cpus 1
expect "quota: one worker for --cpus 1" log_holds quota "with 1 worker on core"
remove quota
last=$(($(nproc) - 1))
start cpuset "${shipped[@]}" --cpuset-cpus "$last"
expect "cpuset: one worker on the one core" log_holds cpuset "with 1 worker on core $last "
remove cpuset

step "the drain"
# A counter that says when it is asked and answers when it is let.
python3 - "$scratch" <<'END' &
import http.server, os, sys, time
class Counter(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        open(sys.argv[1] + "/asked", "w").close()
        while not os.path.exists(sys.argv[1] + "/go"):
            time.sleep(0.05)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Counter)
with open(sys.argv[1] + "/port.new", "w") as file:
    file.write(str(server.server_port))
os.rename(sys.argv[1] + "/port.new", sys.argv[1] + "/port")
server.serve_forever()
END
stub=$!
within 10 test -e "$scratch/port"
start drain --add-host slow:host-gateway -- --counter "http://slow:$(cat "$scratch/port")/counter"
visit drain >"$scratch/visited" &
visitor=$!
expect "a name of /etc/hosts is looked up" within 10 test -e "$scratch/asked"
docker stop "$project-drain" >/dev/null &
stopper=$!
expect "SIGTERM is heard" within 5 log_holds drain "SIGTERM: no new connections"
touch "$scratch/go"
wait "$visitor" "$stopper" || true
expect "the visit under way is welcomed" equal "$(cat "$scratch/visited")" "Welcome to my site!"
expect "it ends with 0" equal "$(inspect drain '{{.State.ExitCode}}')" 0
expect "its last line says so" log_holds drain "stopped: 1 visit welcomed, 0 erred"
remove drain

step "the health check"
start health
expect "it turns healthy" within 30 health_is health healthy
docker kill -s STOP "$project-health" >/dev/null
expect "it turns unhealthy when the server is stopped" within 40 health_is health unhealthy
docker kill -s CONT "$project-health" >/dev/null
expect "it turns healthy again" within 30 health_is health healthy
remove health

site() { compose port site 3000 | sed 's/0\.0\.0\.0/127.0.0.1/'; }
counter() {
    docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(compose ps -q counter)"
}
welcomed() { equal "$(curl -sS --max-time 10 "http://$(site)/")" "Welcome to my site!"; }
total() { equal "$(curl -sS --max-time 10 "http://$(counter):3001/counter" | tr -d '[:space:]')" "$1"; }

check_compose() {
    step "compose $(compose version --short), from the root of the repository"
    expect "it comes up" compose up -d
    expect "a visitor is welcomed, so the counter's name is looked up" within 60 welcomed
    expect "the visit is counted" total 1
    for part in counter site; do
        expect "$part restarts" compose restart "$part"
    done
    expect "no visit is lost" within 30 total 1
    expect "a visitor is welcomed again" within 30 welcomed
    expect "and counted" total 2
    expect "it goes down" compose down
    expect "and comes up again" compose up -d
    expect "a visitor is welcomed then" within 60 welcomed
    expect "the volume has kept the total" total 3
    expect "wrk of the bench profile runs" \
        compose run --rm bench -t1 -c8 -d2s http://site:3000/
    cp "$scratch/said" "$scratch/wrk"
    expect "and every answer was a page" bash -c "! grep -E 'Non-2xx|Socket errors' '$scratch/wrk'"
    sed -n 's/^ *\(.*requests in.*\)/        \1/p' "$scratch/wrk"
    expect "it goes down with its volume" compose down -v
}
for version in 1 2; do
    composer=${composers[$version]:-}
    if [ -n "$composer" ]; then
        check_compose
    else
        step "compose $version"
        echo "NOT RUN: it is not installed here and could not be fetched"
        if [ "$version" = 2 ]; then tail -n 3 "$scratch/compose.log" || true; fi
    fi
done
check_shared() {
    local file=docker/compose-$1.yaml
    step "compose $(compose version --short), $file"
    expect "it is valid" env TALLYRING_DATABASE_PASSWORD=secret \
        bash -c "$composer --project-directory . -f $file config -q"
}
for version in 1 2; do
    composer=${composers[$version]:-}
    if [ -n "$composer" ]; then
        check_shared postgres
        check_shared etcd
        expect "without a password it does not start" \
            env -u TALLYRING_DATABASE_PASSWORD \
            bash -c "! $composer --project-directory . -f docker/compose-postgres.yaml config -q"
    fi
done
composer=
expect "sites, counters and databases of the shared arrangements fit" python3 docker/shared.py

# The one with etcd is not run: Debian's image of a database is made for the other alone.
step "docker/compose-postgres.yaml, and each container killed"
composer=${composers[2]:-${composers[1]:-}}
expect "PostgreSQL's image is built" build -f docker/postgres.Dockerfile -t "$postgres_image" docker
expect "it comes up" shared up -d
welcomes_at() { equal "$(curl -sS --max-time 10 "http://localhost:$1/")" "Welcome to my site!"; }
for port in 3000 3010; do expect "a visitor of port $port is welcomed" within 60 welcomes_at "$port"; done
expect "a killed container loses no visit" timeout 300 docker/kill-each.py "$project"
sed 's/^/        /' "$scratch/said"
not_on_command_lines() { ! ps -ef | grep -v grep | grep -F -- "$1"; }
expect "no command line has the password" not_on_command_lines "$password"
expect "it goes down with its volume" shared down -v
composer=

step "Kubernetes"
expect "the grace period fits the drain" python3 - <<'END'
import yaml
deployment, service, counter, counter_service = yaml.safe_load_all(open("docker/kubernetes.yaml"))
pod = deployment["spec"]["template"]["spec"]
container = pod["containers"][0]
environment = {entry["name"]: entry["value"] for entry in container["env"]}
drain = int(environment["TALLYRING_DRAIN_TIMEOUT"].removesuffix("s"))
pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
assert pod["terminationGracePeriodSeconds"] >= pause + drain + 5
resources = container["resources"]
assert resources["requests"] == resources["limits"] and resources["limits"]["cpu"].isdigit()
for of, to in (deployment, service), (counter, counter_service):
    assert to["spec"]["selector"].items() <= of["spec"]["template"]["metadata"]["labels"].items()
# The counter that the site names is there, and answers to that name.
host, port = container["args"][1].removeprefix("http://").split("/")[0].split(":")
assert counter_service["metadata"]["name"] == host
assert counter_service["spec"]["ports"][0]["port"] == int(port)
its = counter["spec"]["template"]["spec"]["containers"][0]
assert {"name": "TALLYRING_COUNTER_HOSTS", "value": host} in its["env"]
assert its["args"][-1].endswith(f":{port}")
mount = its["volumeMounts"][0]["name"]
assert counter["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == mount
END

step "the program on another distribution"
holder=$(docker create --label "$project" "$image-binary")
docker cp "$holder:/tallyring" "$scratch/tallyring" >/dev/null
expect "it needs no library" grep -q statically <(ldd "$scratch/tallyring" 2>&1)
expect "it runs here" "$scratch/tallyring" --version

step "the files of a release"
if [ -z "$released" ]; then
    echo "NOT RUN: no RELEASED=DIRECTORY of package/release.sh was given"
else
    expect "its program is the image's, to the bit" cmp "$released" "$scratch/tallyring"
    # Under a name of our own.
    image_of_release() {
        SOURCE_DATE_EPOCH=0 package/image.py "$released" "$(dpkg --print-architecture)" "$project-released:latest" \
            "$scratch/released.tar.gz" && docker load -i "$scratch/released.tar.gz"
    }
    expect "its image can be loaded" image_of_release
    settings() { docker image inspect -f '{{json .Config}}' "$1" | python3 -m json.tool --sort-keys; }
    expect "it has the image's settings" diff <(settings "$project-released") <(settings "$image")
    files() { docker create --label "$project" "$1" | xargs docker export | tar -tv | awk '{ print $1, $2, $NF }'; }
    expect "it has the image's files" diff <(files "$project-released") <(files "$image")
fi
