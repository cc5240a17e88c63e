-- What the golden vectors were made from; see tests/rowcodec_capture.py. Statements end with a
-- semicolon at the end of a line; each is its own transaction, but for BEGIN ... COMMIT.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'a "quoted" mood');
CREATE TYPE pair AS (x integer, y text);
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN short_texts AS text[];
CREATE SCHEMA "odd ""schema""";

CREATE TABLE scalars (
    id bigint PRIMARY KEY, small smallint, normal integer, big bigint, an_oid oid, r real, d double precision,
    n numeric, n2 numeric(12, 2), price money, flag boolean, t text, v varchar(40), c char(6), one "char",
    b bytea, tz timestamptz, ts timestamp, dt date, tm time, tmtz timetz, iv interval,
    j json, jb jsonb, u uuid, ip inet, net cidr, mac macaddr, bits bit(5), vb bit varying,
    rng int4range, mr nummultirange, m mood, cmp pair, pos positive, pt point, bx box, tsv tsvector, x xid8, l pg_lsn
);
CREATE TABLE arrays (
    id integer PRIMARY KEY, ints integer[], bigs bigint[], floats double precision[], numerics numeric[], flags boolean[],
    texts text[], chars char(3)[], blobs bytea[], stamps timestamptz[], plain timestamp[], dates date[],
    spans interval[], jsons json[], jsonbs jsonb[], moods mood[], boxes box[], points point[], uuids uuid[], domained short_texts,
    pairs pair[], monies money[], vector int2vector
);
CREATE TABLE toasted (id integer PRIMARY KEY, counter integer, big text, doc jsonb);
ALTER TABLE toasted ALTER COLUMN big SET STORAGE EXTERNAL;
ALTER TABLE toasted ALTER COLUMN doc SET STORAGE EXTERNAL;
CREATE TABLE whole (id integer, note text, doc jsonb);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE by_index (a integer NOT NULL, b text NOT NULL, c text, UNIQUE (b, a));
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_b_a_key;
CREATE TABLE nothing (note text);
CREATE TABLE no_columns ();
CREATE TABLE "odd ""schema"""."täble" ("quo""te" integer PRIMARY KEY, "back\slash" text, "new
line" text, "ключ" text, "_op" text);

INSERT INTO scalars VALUES (
    1, -32768, 2147483647, -9223372036854775808, 4294967295, 1.5, 0.1, 12345678901234567890.123456789, 12.50, -1234.5, true,
    E'tab\tnewline\nreturn\rquote"back\\slash\bfeed\f\x01\x1f\x7f', 'größe 漢字 😀', 'ab', 'x', '\x00ff10abcd',
    '2026-11-22 09:51:54.056779+00', '2026-11-22 09:51:54.5', '2026-11-22', '09:51:54.056779', '09:51:54+05:30',
    '1 year 2 mons -3 days 04:05:06.789', E'{"a": 1,\n "b" : [ 1 , 2.50e+10, "x\\ny \\u00e9 \\u0000" ],\r\n\t"c": {}}', '{"z": 1, "a": [true, null, {"k": "v \" \\"}]}',
    '123e4567-e89b-12d3-a456-426614174000', '10.1.2.3/24', '10.0.0.0/8', '08:00:2b:01:02:03', B'10101', B'11',
    '[1,10)', '{[1.5,2.5),(7,)}', 'a "quoted" mood', '(1,"a ""b"", c")', 7, '(1.5,-2)', '(1,1),(0,0)', 'a:1 fat:2 cat:3', '18446744073709551615', '16/B374D848'
);
INSERT INTO scalars (id) VALUES (2);
INSERT INTO scalars (id, r, d, n, tz, ts, dt, tm, tmtz, iv, j, jb, b, t, one) VALUES (
    3, 'NaN', 'Infinity', 'NaN', 'infinity', '-infinity', 'infinity', '24:00:00', '00:00:00-15:59', '0', 'null', 'null', '', '', ''
);
INSERT INTO scalars (id, r, d, n, tz, ts, dt, iv, j, jb, b) VALUES (
    4, '-Infinity', 1e+300, 'Infinity', '0044-03-15 12:00:00+00 BC', '4713-01-01 00:00:00 BC', '0044-03-15 BC', '-1 year -2 mons +3 days -04:05:06.789',
    '"text"', '"text \u2028"', 'abc'
);
INSERT INTO scalars (id, r, d, n, tz, ts, dt, j, jb, b) VALUES (
    5, 1e-5, 5e-324, '-0.000000000000000000001', '294276-12-31 23:59:59.999999+00', '12026-11-22 09:51:54', '5874897-12-31', '-12.5', '12', '\x0102'
);
INSERT INTO scalars (id, r, d, n, tz, ts, j, jb, b) VALUES (
    6, '-0', 123456789012345680, 1e40, '1890-01-01 00:00:00+00', '0001-01-01 00:00:00', ' [ ] ', '[]', '\x01020304'
);
INSERT INTO arrays VALUES (
    1, '{1,-2,NULL}', '{9223372036854775807}', '{1.5,NaN,-Infinity,1e-5}', '{12.50,NaN}', '{t,f,NULL}',
    ARRAY['plain', 'with space', 'comma,', 'quote"', E'back\\slash', '', 'NULL', 'null', NULL, E'new\nline\ttab', '{brace}', 'größe 😀', E'\x01'],
    '{a,bcd}', ARRAY['\x00ff'::bytea, '', NULL], '{"2026-11-22 09:51:54.056779+00",infinity,"0044-03-15 12:00:00+00 BC"}',
    '{"2026-11-22 09:51:54",NULL}', '{2026-11-22,infinity}', '{"1 day","-2 hours"}', ARRAY['{"a": [1, "two"]}', E'[1,\n2]', '"s"']::json[],
    ARRAY['{"a": "b\\c \"d\""}', '12']::jsonb[], '{sad,"a \"quoted\" mood",NULL}', ARRAY['(1,1),(0,0)', '(2,2),(1,1)']::box[], ARRAY['(1,2)']::point[],
    '{123e4567-e89b-12d3-a456-426614174000}', '{x,y}', ARRAY[ROW(1, 'a "b"')::pair], '{1.5,-2}', '1 2 3'
);
INSERT INTO arrays (id, ints, texts, floats, jsonbs, blobs) VALUES (2, '{}', '{}', '{}', '{}', '{}');
INSERT INTO arrays (id, ints, texts, flags, jsonbs, stamps) VALUES (
    3, '{{1,2},{3,NULL}}', '{{{a,b},{"c d",NULL}}}', '[0:1]={t,f}', ARRAY['1', 'null', NULL]::jsonb[], '{{"2026-11-22 09:51:54+00"}}'
);
INSERT INTO arrays (id, ints, texts) VALUES (4, '[2:3]={5,6}', '[-1:0]={"a\"",b}');
BEGIN;
INSERT INTO toasted SELECT 1, 0, repeat('long text 0123456789 ', 100), jsonb_build_object('k', repeat('v', 2100), 'n', NULL);
UPDATE toasted SET counter = 1;
SAVEPOINT a;
UPDATE toasted SET counter = 2;
ROLLBACK TO a;
UPDATE toasted SET big = 'short', counter = 3;
UPDATE toasted SET id = 2;
DELETE FROM toasted;
COMMIT;
BEGIN;
INSERT INTO whole VALUES (1, 'a', '{"a": null}'), (2, NULL, 'null'), (3, repeat('x', 20), NULL);
UPDATE whole SET note = 'b', doc = 'null' WHERE id = 1;
UPDATE whole SET doc = '1' WHERE id = 2;
DELETE FROM whole WHERE id < 3;
TRUNCATE whole, nothing;
COMMIT;
BEGIN;
INSERT INTO by_index VALUES (1, 'one', 'c');
UPDATE by_index SET c = 'd';
UPDATE by_index SET b = 'two';
DELETE FROM by_index;
INSERT INTO nothing VALUES ('x'), (NULL);
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO "odd ""schema"""."täble" VALUES (1, 'a', 'b', 'в', 'o');
UPDATE "odd ""schema"""."täble" SET "quo""te" = 2;
COMMIT;
-- COPY writes several rows in one WAL record: they share a change_lsn.
COPY nothing FROM PROGRAM 'printf "1\n2\n3\n4\n"';
INSERT INTO arrays (id, ints) VALUES (5, '{7}');
