//! What the server does in one step, in its own language: each script reads, decides and writes.
//!
//! `KEYS` are the hash of values, the sorted set of keys and the count of bytes. No number that may be beyond 2^53
//! passes through a script as a number: Lua has none that hold it.

/// What a script answers in place of a result.
pub(super) const FULL: &str = "full";
pub(super) const NOT_A_NUMBER: &str = "not a number";
pub(super) const OVERFLOW: &str = "overflow";
pub(super) const OTHERWISE: &str = "otherwise";

/// Arguments: the most bytes to answer, and keys. Answers the values, or how many bytes they have.
pub(super) const GET: &str = "
local bytes = 0
for i = 2, #ARGV do bytes = bytes + redis.call('HSTRLEN', KEYS[1], ARGV[i]) end
if bytes > tonumber(ARGV[1]) then return bytes end
return redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
";

/// What those that write begin with: how much there is, and how much it would be. Their first arguments are the most
/// bytes that the store may hold, and what an entry counts by itself.
macro_rules! writing {
    ($rest:literal) => {
        concat!(
            "
local limit, entry = tonumber(ARGV[1]), tonumber(ARGV[2])
local used = 0
if redis.call('EXISTS', KEYS[1]) == 1 then used = tonumber(redis.call('GET', KEYS[3]) or '0') end
local function size(key)
    if redis.call('HEXISTS', KEYS[1], key) == 0 then return 0 end
    return entry + #key + redis.call('HSTRLEN', KEYS[1], key)
end
local function full(bytes) return bytes > limit and bytes > used end
local function count(bytes)
    if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('DEL', KEYS[2], KEYS[3]) return end
    redis.call('SET', KEYS[3], string.format('%.0f', math.max(bytes, 0)))
end
local function put(key, value)
    redis.call('HSET', KEYS[1], key, value)
    redis.call('ZADD', KEYS[2], 0, key)
end
",
            $rest
        )
    };
}

/// Further arguments: keys, each with its value.
pub(super) const SET: &str = writing!(
    "
local bytes, sizes = used, {}
for i = 3, #ARGV, 2 do
    local key, new = ARGV[i], entry + #ARGV[i] + #ARGV[i + 1]
    bytes = bytes - (sizes[key] or size(key)) + new
    sizes[key] = new
end
if full(bytes) then return 'full' end
for i = 3, #ARGV, 2 do put(ARGV[i], ARGV[i + 1]) end
count(bytes)
return 'done'
"
);

/// Further arguments: keys.
pub(super) const DELETE: &str = writing!(
    "
local bytes = used
for i = 3, #ARGV do
    bytes = bytes - size(ARGV[i])
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
end
count(bytes)
return 'done'
"
);

/// Further arguments: a key and what to add. Answers the sum in decimal digits, which is how Redis keeps counters.
pub(super) const INCREMENT: &str = writing!(
    "
local key, before = ARGV[3], size(ARGV[3])
if full(used - before + entry + #key + 20) then return 'full' end
local done = redis.pcall('HINCRBY', KEYS[1], key, ARGV[4])
if type(done) == 'table' and done.err then
    if string.find(done.err, 'overflow') then return 'overflow' end
    if string.find(done.err, 'not an integer') then return 'not a number' end
    return done
end
redis.call('ZADD', KEYS[2], 0, key)
count(used - before + size(key))
return redis.call('HGET', KEYS[1], key)
"
);

/// Further arguments: a key, its value to be, and what was seen there, if anything was.
pub(super) const SWAP: &str = writing!(
    "
local key, value, seen = ARGV[3], ARGV[4], ARGV[5] or false
if redis.call('HGET', KEYS[1], key) ~= seen then return 'otherwise' end
local bytes = used - size(key) + entry + #key + #value
if full(bytes) then return 'full' end
put(key, value)
count(bytes)
return 'done'
"
);
