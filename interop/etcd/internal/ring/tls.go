package ring

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// identity is a certificate and its key.
type identity struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	cert, file  string
}

// CommonName is the name in the target's client certificate, or empty without one. With
// authentication on, it is who calls without a token.
func (t *Target) CommonName() (string, error) {
	if t.Cert == "" {
		return "", nil
	}
	text, err := os.ReadFile(t.Cert)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return "", errors.New(t.Cert + " holds no certificate")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return certificate.Subject.CommonName, nil
}

// issue writes a certificate for a name, signed by a parent or by itself.
func issue(folder, file, name string, parent *identity) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	signer, signerKey := template, key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage |= x509.KeyUsageCertSign
		template.IPAddresses = nil
	} else {
		signer, signerKey = parent.certificate, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signerKey)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	made := &identity{certificate: template, key: key,
		cert: filepath.Join(folder, file+".crt"), file: filepath.Join(folder, file+".key")}
	if err := writePEM(made.cert, "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return made, writePEM(made.file, "PRIVATE KEY", secret)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// secure makes the certificates of a server that lets in only one client, of this name, and returns
// the server's flags.
func (t *Target) secure(folder, client string) ([]string, error) {
	authority, err := issue(folder, "ca", "authority", nil)
	if err != nil {
		return nil, err
	}
	// The server calls itself with its certificate, on behalf of its gateway; a name in it would
	// be taken for a user.
	server, err := issue(folder, "server", "", authority)
	if err != nil {
		return nil, err
	}
	caller, err := issue(folder, "client", client, authority)
	if err != nil {
		return nil, err
	}
	t.CA, t.Cert, t.Key = authority.cert, caller.cert, caller.file
	return []string{
		"--cert-file=" + server.cert, "--key-file=" + server.file,
		"--trusted-ca-file=" + authority.cert, "--client-cert-auth",
	}, nil
}
