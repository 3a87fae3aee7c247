-- The three databases, each with a user of its own that owns it and reaches no other. Run by the superuser, by psql;
-- passwords come from the environment. Run again, it sets the passwords anew and leaves the rest.
\set ON_ERROR_STOP on
SET log_min_error_statement = panic;  -- a statement that fails must not put its password into the log

\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv mlflow_auth_password MLFLOW_AUTH_DB_PASSWORD
\getenv prefect_password PREFECT_DB_PASSWORD

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['mlflow', 'mlflow_auth', 'prefect']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

ALTER ROLE mlflow PASSWORD :'mlflow_password';
ALTER ROLE mlflow_auth PASSWORD :'mlflow_auth_password';
ALTER ROLE prefect PASSWORD :'prefect_password';

SELECT format('CREATE DATABASE %I OWNER %I', name, name)
FROM unnest(ARRAY['mlflow', 'mlflow_auth', 'prefect']) AS name
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name)
\gexec

REVOKE ALL ON DATABASE mlflow, mlflow_auth, prefect FROM PUBLIC;
