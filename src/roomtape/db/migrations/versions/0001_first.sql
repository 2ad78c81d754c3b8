-- Times are timestamptz; media times are bigint microseconds. Every row has its tenant.
CREATE TABLE meetings (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT 'default',
    room_code text NOT NULL CHECK (room_code <> ''),
    title text NOT NULL DEFAULT '',
    host_id text,
    source text,
    metadata jsonb NOT NULL DEFAULT '{}',
    analysis jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant_id, room_code),
    UNIQUE (tenant_id, id)
);
CREATE INDEX meetings_newest ON meetings (tenant_id, created_at DESC, id DESC);

CREATE TABLE participants (
    meeting_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    user_id text NOT NULL CHECK (user_id <> ''),
    full_name text NOT NULL DEFAULT '',
    role text NOT NULL CHECK (role IN ('HOST', 'CO_HOST', 'PARTICIPANT', 'VIEWER')),
    joined_at timestamptz NOT NULL DEFAULT now(),
    left_at timestamptz,
    PRIMARY KEY (meeting_id, user_id),
    FOREIGN KEY (tenant_id, meeting_id) REFERENCES meetings (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX participants_of_user ON participants (tenant_id, user_id);

CREATE TABLE recordings (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT 'default',
    meeting_id uuid NOT NULL,
    owner_id text NOT NULL,
    prefix text NOT NULL,
    source text NOT NULL,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'recording', 'paused', 'stopped', 'processing', 'completed', 'failed')),
    health text NOT NULL DEFAULT 'starting' CHECK (health IN ('starting', 'live', 'stalled', 'silent', 'black', 'frozen')),
    title text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    layout text NOT NULL DEFAULT 'grid',
    audio_only boolean NOT NULL DEFAULT false,
    format text,
    video_codec text,
    audio_codec text,
    bitrate bigint CHECK (bitrate > 0),
    max_duration_s double precision CHECK (max_duration_s > 0),
    strategy text,
    compose text,
    options jsonb NOT NULL DEFAULT '{}',
    visibility text NOT NULL DEFAULT 'private' CHECK (visibility IN ('private', 'participants', 'tenant', 'public')),
    legal_hold boolean NOT NULL DEFAULT false,
    expires_at timestamptz,
    started_at timestamptz,
    stopped_at timestamptz,
    complete_requested_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    purging_at timestamptz CHECK (purging_at IS NULL OR (deleted_at IS NOT NULL AND NOT legal_hold)),  -- its bytes go: it cannot be restored any more
    last_byte_at timestamptz,
    bytes bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    origin_us bigint,
    duration_us bigint CHECK (duration_us >= 0),
    size_bytes bigint CHECK (size_bytes >= 0),
    sha256 text,
    width integer,
    height integer,
    fps double precision,
    warnings jsonb NOT NULL DEFAULT '[]',
    error jsonb,
    job_id text,
    event_seq bigint NOT NULL DEFAULT 0,
    FOREIGN KEY (tenant_id, meeting_id) REFERENCES meetings (tenant_id, id),
    UNIQUE (tenant_id, id)
);
CREATE UNIQUE INDEX one_open_recording ON recordings (meeting_id) WHERE status IN ('pending', 'recording', 'paused');
CREATE INDEX recordings_of_meeting ON recordings (meeting_id, created_at DESC, id DESC);
CREATE INDEX recordings_running ON recordings (status, last_byte_at) WHERE status NOT IN ('completed', 'failed');
CREATE INDEX recordings_in_trash ON recordings (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX recordings_expiring ON recordings (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE tracks (
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    id text NOT NULL CHECK (id <> ''),
    participant_id text,
    kind text CHECK (kind IN ('audio', 'video')),
    source text,
    mime_type text,
    clock text NOT NULL DEFAULT 'none' CHECK (clock IN ('measured', 'client', 'none')),
    closed_last_index integer CHECK (closed_last_index >= 0),
    live_skips integer[] NOT NULL DEFAULT '{}',
    clock_shift_us bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (recording_id, id),
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);

CREATE SEQUENCE commit_order;
CREATE TABLE chunks (
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    track_id text NOT NULL,
    index integer NOT NULL CHECK (index >= 1),
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    key text NOT NULL,
    mime_type text,
    state text NOT NULL CHECK (state IN ('queued', 'in_progress', 'done', 'failed', 'cleaned')),
    stored_in text NOT NULL CHECK (stored_in IN ('primary', 'spool')),
    spool_host text CHECK ((spool_host IS NOT NULL) OR stored_in = 'primary'),
    starts_file boolean NOT NULL DEFAULT false,
    stated_us bigint,
    clock_offset_us bigint,
    duration_ms integer,
    warning text,
    arrived_at timestamptz NOT NULL DEFAULT now(),
    commit_seq bigint NOT NULL,
    parsed boolean NOT NULL DEFAULT false,
    media_start_us bigint,
    media_end_us bigint,
    index_blob bytea,
    carry bytea,
    PRIMARY KEY (recording_id, track_id, index),
    FOREIGN KEY (recording_id, track_id) REFERENCES tracks (recording_id, id) ON DELETE CASCADE
);
CREATE INDEX chunks_by_key ON chunks (key);
CREATE INDEX chunks_in_commit_order ON chunks (recording_id, commit_seq);
CREATE INDEX chunks_in_spool ON chunks (spool_host, state) WHERE stored_in = 'spool';

CREATE TABLE mends (
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    track_id text NOT NULL,
    index integer NOT NULL,
    offset_us bigint NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (recording_id, track_id, index, offset_us),
    FOREIGN KEY (recording_id, track_id, index) REFERENCES chunks (recording_id, track_id, index) ON DELETE CASCADE
);

CREATE TABLE pauses (
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    from_at timestamptz NOT NULL DEFAULT now(),
    to_at timestamptz CHECK (to_at >= from_at),
    by text,
    PRIMARY KEY (recording_id, from_at),
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE artifacts (
    id uuid PRIMARY KEY,
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    kind text NOT NULL,
    recipe text NOT NULL,
    key text,
    mime_type text,
    size_bytes bigint CHECK (size_bytes >= 0),
    sha256 text,
    duration_us bigint,
    state text NOT NULL CHECK (state IN ('wanted', 'making', 'ready', 'failed')),
    progress double precision NOT NULL DEFAULT 0,
    error jsonb,
    head bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (recording_id, kind, recipe),
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);

-- Who may see what, kept up to date so that a list is one index range. `via` says why a row is here: owner, host, admin, visibility, share:ID.
CREATE TABLE acl (
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    subject text NOT NULL CHECK (subject <> ''),
    permission text NOT NULL,
    via text NOT NULL,
    sort_at timestamptz NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (recording_id, subject, via),
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX acl_newest ON acl (tenant_id, subject, sort_at DESC, recording_id DESC);

-- The outbox and the history. `seq` rises by one per recording; `global` rises in the order of commits: it is given by a trigger at commit, under a
-- lock, so that a reader that has seen n never finds a smaller number later.
CREATE SEQUENCE event_order;
CREATE TABLE events (
    id uuid PRIMARY KEY,
    recording_id uuid NOT NULL,
    tenant_id text NOT NULL DEFAULT 'default',
    meeting_id uuid NOT NULL,
    seq bigint NOT NULL,
    global bigint UNIQUE,
    type text NOT NULL,
    data jsonb NOT NULL DEFAULT '{}',
    at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (recording_id, seq),
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);
CREATE FUNCTION events_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1919905652, 1);  -- 'rort': one lock for all events
    UPDATE events SET global = nextval('event_order') WHERE id = NEW.id;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER events_number AFTER INSERT ON events
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION events_number();

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT 'default',
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('admin', 'service', 'user')),
    user_id text CHECK (role <> 'user' OR user_id IS NOT NULL),
    key_hash bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE login_links (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    tenant_id text NOT NULL DEFAULT 'default',
    user_id text NOT NULL,
    roles text[] NOT NULL DEFAULT '{}',
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);

CREATE TABLE sessions (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    tenant_id text NOT NULL DEFAULT 'default',
    user_id text NOT NULL,
    roles text[] NOT NULL DEFAULT '{}',
    csrf text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

CREATE TABLE playback_tokens (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    tenant_id text NOT NULL DEFAULT 'default',
    recording_id uuid NOT NULL,
    subject text NOT NULL,
    permission text NOT NULL DEFAULT 'view',
    expires_at timestamptz NOT NULL,
    until_at timestamptz NOT NULL,
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE idempotency (
    tenant_id text NOT NULL DEFAULT 'default',
    subject text NOT NULL,
    key text NOT NULL,
    route text NOT NULL,
    request_hash text NOT NULL,
    status integer,
    body bytea,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, subject, key)
);
CREATE INDEX idempotency_by_age ON idempotency (at);

-- Which recorder process holds a live capture. The fence rises with every taking; a write of an old holder finds no row.
CREATE SEQUENCE lease_fence;
CREATE TABLE leases (
    recording_id uuid PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT 'default',
    holder text NOT NULL,
    fence bigint NOT NULL,
    until timestamptz NOT NULL,
    FOREIGN KEY (tenant_id, recording_id) REFERENCES recordings (tenant_id, id) ON DELETE CASCADE
);

-- Which installation this database is: its store carries the same name, so that a store is never cleaned by the rows of another one.
CREATE TABLE installation (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    single boolean PRIMARY KEY DEFAULT true CHECK (single)
);
INSERT INTO installation DEFAULT VALUES;

-- Recordings whose bytes and rows are gone: what still comes up in the store under their names may go too. Others' recordings are in neither table.
CREATE TABLE purged (recording_id uuid PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());

-- Which of the queue library's own migrations this database has; see db/schema.py.
CREATE TABLE queue_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
