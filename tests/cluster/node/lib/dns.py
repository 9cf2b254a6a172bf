#!/usr/bin/env python3
"""Cluster DNS, as the Kubernetes DNS specification has it, in one small process.

Watches Services and Endpoints and answers A, SRV, PTR and CNAME:

    svc.ns.svc.DOMAIN            the cluster IP, or all ready addresses (headless)
    host.svc.ns.svc.DOMAIN       one address of a headless service; `host` is the
                                 pod's hostname (StatefulSet pods, or pods with
                                 hostname and subdomain) or its IP with dashes
    _port._proto.svc.ns.svc.DOMAIN   SRV

With publishNotReadyAddresses the endpoints controller itself lists pods that
are not ready as ready addresses, so they are answered with no more ado. Any
other name gets NXDOMAIN: there is no upstream. AAAA for a name that exists is
answered empty (NOERROR), as resolvers that ask for both need.
"""

import argparse
import http.client
import json
import logging
import socket
import socketserver
import ssl
import threading
import time
import urllib.parse

from dnslib import CNAME, PTR, QTYPE, RCODE, RR, SOA, SRV, A, DNSRecord

TTL = 5
log = logging.getLogger("dns")


class Watcher(threading.Thread):
    """Keeps `items` equal to one collection of the API server."""

    def __init__(self, args, path, changed):
        super().__init__(daemon=True, name=path)
        self.url = urllib.parse.urlsplit(args.server)
        self.context = ssl.create_default_context(cafile=args.ca)
        self.context.load_cert_chain(args.cert, args.key)
        self.path, self.changed = path, changed
        self.items, self.synced = {}, threading.Event()

    def get(self, query, timeout):
        connection = http.client.HTTPSConnection(
            self.url.hostname, self.url.port, context=self.context, timeout=timeout
        )
        connection.request("GET", self.path + query)
        response = connection.getresponse()
        if response.status != 200:
            raise OSError(f"{self.path}{query}: {response.status} {response.read(300)!r}")
        return response

    def run(self):
        while True:
            try:
                listed = json.load(self.get("", 10))
                self.items = {self.key(item): item for item in listed["items"]}
                self.changed()
                self.synced.set()
                version = listed["metadata"]["resourceVersion"]
                # The server ends a watch at its timeout; then list anew.
                for line in self.get(f"?watch=1&timeoutSeconds=240&resourceVersion={version}", 300):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        break
                    item = event["object"]
                    if event["type"] == "DELETED":
                        self.items.pop(self.key(item), None)
                    else:
                        self.items[self.key(item)] = item
                    self.changed()
            except (OSError, ValueError, http.client.HTTPException) as error:
                log.warning("watch %s: %r", self.path, error)
                time.sleep(0.5)

    @staticmethod
    def key(item):
        return item["metadata"]["namespace"], item["metadata"]["name"]


class Zone:
    """The records, rebuilt from the watched objects after each change."""

    def __init__(self, args):
        self.domain = args.domain
        self.lock = threading.Lock()
        self.records = {}  # lower-case name without the last dot -> [RR data]
        self.nodes = set()  # those names and all names above them
        self.services = Watcher(args, "/api/v1/services", self.rebuild)
        self.endpoints = Watcher(args, "/api/v1/endpoints", self.rebuild)

    def start(self):
        self.services.start()
        self.endpoints.start()

    @property
    def synced(self):
        return self.services.synced.is_set() and self.endpoints.synced.is_set()

    def rebuild(self):
        with self.lock:
            records = {}

            def add(name, data):
                entries = records.setdefault(name.lower(), [])
                if not any(repr(data) == repr(e) and type(data) is type(e) for e in entries):
                    entries.append(data)

            def reverse(ip, name):
                add(".".join(reversed(ip.split("."))) + ".in-addr.arpa", PTR(name))

            for (namespace, name), service in list(self.services.items.items()):
                base = f"{name}.{namespace}.svc.{self.domain}"
                spec = service["spec"]
                ip = spec.get("clusterIP")
                if spec.get("type") == "ExternalName":
                    add(base, CNAME(spec["externalName"]))
                elif ip and ip != "None":
                    add(base, A(ip))
                    reverse(ip, base)
                    for port in spec.get("ports", ()):
                        if port.get("name"):
                            add(f"_{port['name']}._{port['protocol']}.{base}", SRV(0, 100, port["port"], base))
                else:
                    subsets = self.endpoints.items.get((namespace, name), {}).get("subsets") or ()
                    for subset in subsets:
                        for address in subset.get("addresses") or ():
                            ip = address["ip"]
                            host = f"{address.get('hostname') or ip.replace('.', '-')}.{base}"
                            add(base, A(ip))
                            add(host, A(ip))
                            reverse(ip, host)
                            for port in subset.get("ports") or ():
                                if port.get("name"):
                                    add(f"_{port['name']}._{port['protocol']}.{base}", SRV(0, 100, port["port"], host))
            nodes = set()
            for name in records:
                labels = name.split(".")
                nodes.update(".".join(labels[i:]) for i in range(len(labels)))
            self.records, self.nodes = records, nodes

    def answer(self, packet, limit=None):
        """The reply's bytes; limit is the largest that may go over UDP."""
        request = DNSRecord.parse(packet)
        reply = request.reply(ra=0, aa=1)
        name = str(request.q.qname).rstrip(".").lower()
        qtype = QTYPE[request.q.qtype]
        records, nodes = self.records, self.nodes
        if not self.synced:
            reply.header.rcode = RCODE.SERVFAIL
        else:
            for data in records.get(name, ()):
                kind = type(data).__name__
                if kind == qtype or kind == "CNAME" or qtype == "ANY":
                    reply.add_answer(RR(request.q.qname, getattr(QTYPE, kind), rdata=data, ttl=TTL))
            if not reply.rr:
                if name not in nodes and name != self.domain:
                    reply.header.rcode = RCODE.NXDOMAIN
                soa = SOA(
                    f"ns.dns.{self.domain}", f"hostmaster.{self.domain}", (int(time.time()), 7200, 1800, 86400, 1)
                )
                reply.add_auth(RR(self.domain, QTYPE.SOA, rdata=soa, ttl=1))
        packed = reply.pack()
        if limit:
            for extra in request.ar:
                if extra.rtype == QTYPE.OPT:
                    limit = max(limit, extra.edns_len)
            if len(packed) > limit:  # the client asks again over TCP
                # (not dnslib's truncate(): it drops the question, and glibc such a reply)
                reply.rr, reply.auth = [], []
                reply.header.tc = 1
                packed = reply.pack()
        return packed


def serve_udp(zone, address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((address, 53))
        while True:
            packet, client = udp.recvfrom(4096)
            try:
                udp.sendto(zone.answer(packet, 512), client)
            except Exception as error:  # a malformed packet must not end the server
                log.warning("udp %s: %r", client, error)


def serve_tcp(zone, address):
    class Handler(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self):
            while len(size := self.rfile.read(2)) == 2:
                reply = zone.answer(self.rfile.read(int.from_bytes(size, "big")))
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    Server((address, 53), Handler).serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("server", "ca", "cert", "key", "listen", "domain"):
        parser.add_argument("--" + option, required=True)
    args = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    zone = Zone(args)
    zone.start()
    threading.Thread(target=serve_tcp, args=(zone, args.listen), daemon=True).start()
    serve_udp(zone, args.listen)


if __name__ == "__main__":
    main()
