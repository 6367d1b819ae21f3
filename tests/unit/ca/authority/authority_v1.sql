-- What `ringfence ca` of schema version 1 left behind (sqlite3 .dump): never to be edited.
BEGIN TRANSACTION;
CREATE TABLE authorities (
        key_id TEXT PRIMARY KEY,             -- subject key identifier, hex: names the key file
        kind TEXT NOT NULL,                  -- root | intermediate
        state TEXT NOT NULL,                 -- prepared | active | retired
        certificate BLOB NOT NULL,           -- DER
        issuer_key_id TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
CREATE TABLE certificates (
        serial TEXT PRIMARY KEY,             -- hex
        identity TEXT NOT NULL,
        node TEXT NOT NULL,                  -- the node that asked; empty for the CA's own
        not_before INTEGER NOT NULL,
        not_after INTEGER NOT NULL,
        issued_at INTEGER NOT NULL,
        attestation TEXT NOT NULL,           -- how the asker proved itself
        requester TEXT NOT NULL,             -- its address
        issuer_key_id TEXT NOT NULL
    ) STRICT;
INSERT INTO "certificates" VALUES('4000000000000000000000000000000000000000','spiffe://cluster.local/ringfence/node/node-1','node-1',1795348740,1795352400,1795348800,'join_token','10.247.0.11:4000','abababababababababababababababababababab');
INSERT INTO "certificates" VALUES('2000000000000000000000000000000000000000','spiffe://cluster.local/ns/default/sa/web','node-1',1795348740,1795352400,1795348800,'node_certificate','10.247.0.11:4000','abababababababababababababababababababab');
CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE tokens (
        hash BLOB PRIMARY KEY,               -- sha256; the token itself is never stored
        node TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        used_at INTEGER,
        used_by TEXT                         -- serial of the certificate that it bought
    ) STRICT;
INSERT INTO "tokens" VALUES(X'6868686868686868686868686868686868686868686868686868686868686868','node-1',1795348800,1795349400,1795348800,'4000000000000000000000000000000000000000');
INSERT INTO "tokens" VALUES(X'6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B6B','node-2',1795348800,1795867200,NULL,NULL);
CREATE INDEX certificates_node ON certificates (node, issued_at);
CREATE INDEX certificates_identity ON certificates (identity, issued_at);
COMMIT;
