"""PostgreSQL: logical replication through pgoutput."""
