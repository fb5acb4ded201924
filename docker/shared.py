#!/usr/bin/env python3
"""Whether the parts of the arrangements with a shared database fit to each other: docker/shared.py"""
import pathlib
import re

import yaml

HERE = pathlib.Path(__file__).parent


def of_url(url):
    """The hosts of http://host:port/path, postgres://user@host/database or etcd://host,host/prefix."""
    return re.sub(r"^\w+://(\w+@)?", "", url).split("/")[0].split(",")


def check_compose(name, databases):
    document = yaml.safe_load((HERE / f"compose-{name}.yaml").read_text())
    services = document["services"]
    sites = {key: value for key, value in services.items() if key.startswith("site-")}
    counters = {key: value for key, value in services.items() if key.startswith("counter-")}
    assert len(sites) == len(counters) == 2
    # Each site knows both.
    both = [word for name in counters for word in ("--counter", f"http://{name}:3001/counter")]
    for site in sites.values():
        assert site["command"] == both and set(site["depends_on"]) == set(counters), site
    for name, counter in counters.items():
        environment = counter["environment"]
        # It answers to the name that the site gives it, and writes a shard of its own.
        assert environment["TALLYRING_COUNTER_HOSTS"] == environment["TALLYRING_STORE_SHARD"] == name
        store = of_url(environment["TALLYRING_STORE"])
        assert [host.split(":")[0] for host in store] == databases, store
        assert set(counter["depends_on"]) == set(databases)
        assert "password" not in " ".join(counter["command"])
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
    for name in databases:
        # What must not be lost is in a volume with a name.
        volume = services[name]["volumes"][0].split(":")[0]
        assert volume in document["volumes"], volume
        assert services[name]["healthcheck"]["test"][0] == "CMD"
    return services


def check_kubernetes():
    kinds = {}
    for document in yaml.safe_load_all((HERE / "kubernetes-shared.yaml").read_text()):
        kinds.setdefault(document["kind"], {})[document["metadata"]["name"]] = document["spec"]
    site, counter = kinds["Deployment"]["tallyring"], kinds["StatefulSet"]["counter"]
    assert site["replicas"] == counter["replicas"] == 2
    for name, workload in ("tallyring", site), ("counter", counter):
        pod = workload["template"]["spec"]
        container = pod["containers"][0]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        drain = int(environment["TALLYRING_DRAIN_TIMEOUT"].removesuffix("s"))
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] >= pause + drain + 5
        resources = container["resources"]
        assert resources["requests"] == resources["limits"] and resources["limits"]["cpu"].isdigit()
        labels = workload["template"]["metadata"]["labels"]
        budget = kinds["PodDisruptionBudget"][name]
        selectors = [budget["selector"]["matchLabels"], kinds["Service"][name]["selector"]]
        selectors.append(pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"])
        assert budget["maxUnavailable"] < workload["replicas"]
        assert all(selector.items() <= labels.items() for selector in selectors)
        assert "livenessProbe" in container and "readinessProbe" in container
    # The site asks a service that is there, and whose name the counters answer to, at each address that it has.
    arguments = site["template"]["spec"]["containers"][0]["args"]
    assert arguments[2:] == ["--counter-spread", "addresses"]
    host, port = of_url(arguments[1])[0].split(":")
    container = counter["template"]["spec"]["containers"][0]
    assert {"name": "TALLYRING_COUNTER_HOSTS", "value": host} in container["env"]
    assert kinds["Service"][host]["ports"][0]["port"] == int(port)
    assert container["args"][-1].endswith(f":{port}")
    # The pods have names of their own, and so have their shards.
    assert kinds["Service"][counter["serviceName"]]["clusterIP"] == "None"
    secret = next(entry for entry in container["env"] if entry["name"] == "PGPASSWORD")
    assert "secretKeyRef" in secret["valueFrom"] and ":" not in of_url(
        next(entry["value"] for entry in container["env"] if entry["name"] == "TALLYRING_STORE")
    )[0]
    # While the database is away, no counter is to be restarted.
    assert "httpGet" not in container["livenessProbe"]


postgres = check_compose("postgres", ["database"])
database = postgres["database"]["environment"]
for name in "counter-1", "counter-2":
    environment = postgres[name]["environment"]
    assert environment["PGPASSWORD"] == database["POSTGRES_PASSWORD"]
    store = f"postgres://{database['POSTGRES_USER']}@database/{database['POSTGRES_DB']}"
    assert environment["TALLYRING_STORE"].startswith(store + "?")
members = ["etcd-1", "etcd-2", "etcd-3"]
etcd = check_compose("etcd", members)
for name in members:
    environment = etcd[name]["environment"]
    cluster = dict(member.split("=") for member in environment["ETCD_INITIAL_CLUSTER"].split(","))
    assert list(cluster) == members and environment["ETCD_NAME"] == name
    assert environment["ETCD_INITIAL_ADVERTISE_PEER_URLS"] == cluster[name]
check_kubernetes()
