-- How many were relayed, counted as it happens: each look at the outbox asks, and to count a year's
-- messages takes minutes. What is not relayed is counted when somebody asks; that is little.
CREATE TABLE tally (
    status text   PRIMARY KEY,
    number bigint NOT NULL
);

-- As the owner, so that nobody else needs the right to change it. A relayed message stays so.
CREATE FUNCTION count_relayed() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = referrals, pg_temp AS $$
BEGIN
    UPDATE tally SET number = number + 1 WHERE status = 'relayed';
    RETURN NULL;
END
$$;

-- At the commit, when the end of the audit is held anyway: sooner, it would keep others waiting.
CREATE CONSTRAINT TRIGGER relayed_is_counted AFTER UPDATE OF status ON message
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.status = 'relayed' AND OLD.status <> 'relayed') EXECUTE FUNCTION count_relayed();

-- After the trigger, which waits for those who write and then keeps them out until we commit.
INSERT INTO tally SELECT 'relayed', count(*) FROM message WHERE status = 'relayed';

-- The daily purge looks at what still has its content, not at all there ever was.
CREATE INDEX message_unpurged ON message (id) WHERE purged_at IS NULL;
