"""A certificate for a test's server."""

import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.servers.servers import EmbeddedPostgres


def write_certificate(server: EmbeddedPostgres) -> None:
    """A self-signed certificate for `localhost`, where PostgreSQL looks for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for path, content in (("server.crt", certificate), ("server.key", secret)):
        target = server.data_directory / path
        target.write_bytes(content)
        target.chmod(0o600)
        server._give_to_account(target)
