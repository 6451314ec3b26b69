-- A database as schema version 1 wrote it.
BEGIN TRANSACTION;
CREATE TABLE deliveries (
        id TEXT NOT NULL PRIMARY KEY,
        url TEXT NOT NULL,
        payload BLOB NOT NULL,
        attempts INTEGER NOT NULL,
        next_at REAL NOT NULL
    ) STRICT;
CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        id TEXT UNIQUE,
        format TEXT NOT NULL,
        seed INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        steps INTEGER NOT NULL,
        encode_seconds REAL NOT NULL,
        sample_seconds REAL NOT NULL,
        decode_seconds REAL NOT NULL,
        flagged INTEGER NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT;
INSERT INTO "images" VALUES('job_1',0,'image_1','png',7,3,4,1.0,2.0,3.0,0);
CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        status TEXT NOT NULL,
        request TEXT NOT NULL,
        terms TEXT NOT NULL,
        idempotency_key TEXT,
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        attempts INTEGER NOT NULL,
        last_event INTEGER NOT NULL,
        reason TEXT,
        message TEXT
    ) STRICT;
INSERT INTO "jobs" VALUES(1,'job_1','','completed','{"model": "m", "prompt": "a red circle", "negative_prompt": "", "width": 64, "height": 32, "steps": 4, "sampler": "euler", "schedule": "default", "cfg_scale": 1.0, "guidance": null, "seed": 4611686018427387904, "n": 1, "previews": 0, "strength": null, "fit": "crop", "mask_mode": "auto", "mask_blur": 0.0, "safety": "off", "quality": "auto", "output_format": "png", "output_compression": 100, "warnings": ["careful"]}','{"operation": "generation", "owner": "", "priority": "normal", "background": true, "as_url": false, "data_url": false, "idempotency_key": null, "fingerprint": "", "webhook_url": null, "base_url": ""}',NULL,1000000.0,1000000.0,1000000.0,1,4,NULL,NULL);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_by_end ON jobs (ended) WHERE ended IS NOT NULL;
PRAGMA user_version = 1;
COMMIT;
