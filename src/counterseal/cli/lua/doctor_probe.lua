-- doctor_probe: reads the doctor's own key, to see whether scripts may run
-- keys: probe
-- args: none
-- returns: the value, or nil when there is none
-- ttl: nothing is written
return redis.call('GET', KEYS[1])
