// Verifies exported Satrap blocks with CometBFT's own light client.
//
// Nothing here shares code with Satrap: what this program accepts, every Tendermint light client
// accepts. It reads a file of light blocks (a big-endian uint32 length and a protobuf
// tendermint.types.LightBlock each), trusts the first one, verifies every adjacent and many
// skipping steps, and then forges blocks, all of which must be refused for the expected reason.
// It exits non-zero on the first surprise.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cometbft/cometbft/light"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	"github.com/cometbft/cometbft/types"
)

const (
	// A light block of 128 validators has less than 64 KiB; anything above this is no export.
	blockBytesMax = 1 << 20
	blocksMin     = 3
	// Blocks of a simulated realm carry simulated times, so "now" follows the newest block.
	trustingPeriod = 90 * 24 * time.Hour
	clockDrift     = 10 * time.Second
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: light-client FILE")
		os.Exit(64)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "light-client:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	blocks, err := read(path)
	if err != nil {
		return err
	}
	now := blocks[len(blocks)-1].Time.Add(time.Second)
	adjacent, err := verifyAdjacent(blocks, now)
	if err != nil {
		return err
	}
	skipping, err := verifySkipping(blocks, now)
	if err != nil {
		return err
	}
	refused, err := refuseForgeries(blocks, now)
	if err != nil {
		return err
	}
	fmt.Printf("CometBFT light client: %d blocks of %s, heights %d to %d, validator sets of %s: "+
		"%d adjacent and %d skipping steps verified, %d forgeries refused\n",
		len(blocks), blocks[0].ChainID, blocks[0].Height, blocks[len(blocks)-1].Height,
		setSizes(blocks), adjacent, skipping, refused)
	return nil
}

func read(path string) ([]*types.LightBlock, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var blocks []*types.LightBlock
	for {
		var length uint32
		switch err := binary.Read(file, binary.BigEndian, &length); {
		case errors.Is(err, io.EOF) && len(blocks) < blocksMin:
			return nil, fmt.Errorf("%s holds %d light blocks, expected at least %d", path, len(blocks), blocksMin)
		case errors.Is(err, io.EOF):
			return blocks, nil
		case err != nil:
			return nil, fmt.Errorf("length of block %d: %w", len(blocks), err)
		case length > blockBytesMax:
			return nil, fmt.Errorf("block %d claims %d bytes", len(blocks), length)
		}
		bytes := make([]byte, length)
		if _, err := io.ReadFull(file, bytes); err != nil {
			return nil, fmt.Errorf("block %d: %w", len(blocks), err)
		}
		block, err := decode(bytes)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", len(blocks), err)
		}
		blocks = append(blocks, block)
	}
}

func decode(bytes []byte) (*types.LightBlock, error) {
	message := new(cmtproto.LightBlock)
	if err := message.Unmarshal(bytes); err != nil {
		return nil, err
	}
	block, err := types.LightBlockFromProto(message)
	if err != nil {
		return nil, err
	}
	return block, block.ValidateBasic(block.ChainID)
}

func verifyAdjacent(blocks []*types.LightBlock, now time.Time) (int, error) {
	for i := 1; i < len(blocks); i++ {
		trusted, block := blocks[i-1], blocks[i]
		err := light.VerifyAdjacent(trusted.SignedHeader, block.SignedHeader, block.ValidatorSet,
			trustingPeriod, now, clockDrift)
		if err != nil {
			return 0, fmt.Errorf("adjacent step %d to %d: %w", trusted.Height, block.Height, err)
		}
	}
	return len(blocks) - 1, nil
}

// Steps from each block to each later one that is not its neighbor. A step is allowed to fail for
// lack of trust only if the sets really have less than a third of the power in common.
func verifySkipping(blocks []*types.LightBlock, now time.Time) (int, error) {
	verified := 0
	for i := 0; i < len(blocks); i++ {
		for j := i + 2; j < len(blocks); j++ {
			err := verify(blocks, i, blocks[j], now)
			if common(announced(blocks, i), blocks[j]) {
				if err != nil {
					return 0, fmt.Errorf("skip %d to %d: %w", blocks[i].Height, blocks[j].Height, err)
				}
				verified++
			} else if !errors.As(err, new(light.ErrNewValSetCantBeTrusted)) {
				return 0, fmt.Errorf("skip %d to %d: expected too little trust, got: %v",
					blocks[i].Height, blocks[j].Height, err)
			}
		}
	}
	if verified == 0 {
		return 0, errors.New("no skipping step could be tried")
	}
	return verified, nil
}

// The set that a block announces is the one that signed the block after it.
func announced(blocks []*types.LightBlock, i int) *types.ValidatorSet {
	return blocks[i+1].ValidatorSet
}

// Whether more than a third of the trusted power is among the signers of the block.
func common(trusted *types.ValidatorSet, block *types.LightBlock) bool {
	var signed int64
	for _, signature := range block.Commit.Signatures {
		if signature.BlockIDFlag != types.BlockIDFlagCommit {
			continue
		}
		if _, validator := trusted.GetByAddress(signature.ValidatorAddress); validator != nil {
			signed += validator.VotingPower
		}
	}
	return 3*signed > trusted.TotalVotingPower()
}

func verify(blocks []*types.LightBlock, trusted int, block *types.LightBlock, now time.Time) error {
	return light.Verify(blocks[trusted].SignedHeader, announced(blocks, trusted), block.SignedHeader,
		block.ValidatorSet, trustingPeriod, now, clockDrift, light.DefaultTrustLevel)
}

type forgery struct {
	name string
	// Matches the expected error: a forgery refused for another reason tests nothing.
	reason string
	forge  func(*types.LightBlock)
}

// Without a validator's key a forger can alter a block, and can fix its hash, but not sign it.
func rehash(block *types.LightBlock) {
	block.Commit.BlockID.Hash = block.Header.Hash()
}

var forgeries = []forgery{
	{"tampered app hash", "commit signs block", func(b *types.LightBlock) { b.AppHash[0] ^= 1 }},
	{"tampered app hash, new block id", "wrong signature", func(b *types.LightBlock) {
		b.AppHash[0] ^= 1
		rehash(b)
	}},
	{"tampered payload, new block id", "wrong signature", func(b *types.LightBlock) {
		b.DataHash[0] ^= 1
		rehash(b)
	}},
	{"signatures below quorum", "insufficient voting power", func(b *types.LightBlock) {
		signed := int64(0)
		for i, signature := range b.Commit.Signatures {
			power := b.ValidatorSet.Validators[i].VotingPower
			if signature.BlockIDFlag != types.BlockIDFlagCommit {
				continue
			}
			if signed += power; 3*signed > 2*b.ValidatorSet.TotalVotingPower() {
				b.Commit.Signatures[i] = types.NewCommitSigAbsent()
				signed -= power
			}
		}
	}},
	{"one signer in two places", "double vote|validator address mismatch", func(b *types.LightBlock) {
		signed := slices.IndexFunc(b.Commit.Signatures, func(s types.CommitSig) bool {
			return s.BlockIDFlag == types.BlockIDFlagCommit
		})
		for i := range b.Commit.Signatures {
			b.Commit.Signatures[i] = b.Commit.Signatures[signed]
		}
	}},
	{"signature altered", "wrong signature", func(b *types.LightBlock) {
		for i := range b.Commit.Signatures {
			if len(b.Commit.Signatures[i].Signature) > 0 {
				b.Commit.Signatures[i].Signature[5] ^= 1
				return
			}
		}
	}},
	{"wrong chain id", "another chain", func(b *types.LightBlock) {
		b.ChainID = "another-realm"
		rehash(b)
	}},
	{"swapped validator set", "to match those that were supplied", func(b *types.LightBlock) {
		b.ValidatorSet, _ = strangers(b.ValidatorSet.Size())
	}},
	{"block of strangers", "old header next validators|cant trust new val set", signAsStrangers},
}

// A validator set of the forger's own making.
func strangers(size int) (*types.ValidatorSet, map[string]types.MockPV) {
	keys := make(map[string]types.MockPV)
	validators := make([]*types.Validator, size)
	for i := range validators {
		key := types.NewMockPV()
		validators[i] = types.NewValidator(key.PrivKey.PubKey(), 1)
		keys[string(validators[i].Address)] = key
	}
	return types.NewValidatorSet(validators), keys
}

// The best forgery there is without one of the realm's keys: valid in itself, signed by all of a
// set that was not announced.
func signAsStrangers(b *types.LightBlock) {
	set, keys := strangers(b.ValidatorSet.Size())
	b.ValidatorSet = set
	b.ValidatorsHash = set.Hash()
	b.ProposerAddress = set.Proposer.Address
	rehash(b)
	for i, validator := range set.Validators {
		vote := &cmtproto.Vote{
			Type: cmtproto.PrecommitType, Height: b.Height, Round: b.Commit.Round,
			BlockID: b.Commit.BlockID.ToProto(), Timestamp: b.Time,
			ValidatorAddress: validator.Address, ValidatorIndex: int32(i),
		}
		if err := keys[string(validator.Address)].SignVote(b.ChainID, vote); err != nil {
			panic(fmt.Sprintf("a key in memory signs: %v", err))
		}
		b.Commit.Signatures[i] = types.CommitSig{
			BlockIDFlag: types.BlockIDFlagCommit, ValidatorAddress: validator.Address,
			Timestamp: vote.Timestamp, Signature: vote.Signature,
		}
	}
}

// Every forgery of the middle and of the last block, one step and many steps from what is trusted;
// then blocks that are genuine, but too old, too new, or trusted for too long.
func refuseForgeries(blocks []*types.LightBlock, now time.Time) (int, error) {
	refused := 0
	last := len(blocks) - 1
	for _, step := range [][2]int{{0, last}, {last - 1, last}, {0, len(blocks) / 2}} {
		trusted, genuine := step[0], blocks[step[1]]
		if common(announced(blocks, trusted), genuine) || genuine.Height == blocks[trusted].Height+1 {
			if err := verify(blocks, trusted, clone(genuine), now); err != nil {
				return 0, fmt.Errorf("genuine block %d: %w", genuine.Height, err)
			}
		}
		for _, f := range forgeries {
			forged := clone(genuine)
			f.forge(forged)
			if err := expect(f, verify(blocks, trusted, forged, now)); err != nil {
				return 0, err
			}
			refused++
		}
	}
	early := blocks[last].Time.Add(-clockDrift)
	late := blocks[0].Time.Add(trustingPeriod)
	for _, t := range []struct {
		name, reason string
		err          error
	}{
		{"header from the future", "from the future", verify(blocks, last-1, blocks[last], early)},
		{"rollback", "greater than", verify(blocks, last-1, blocks[0], now)},
		{"the trusted height again", "greater than", verify(blocks, last-1, blocks[last-1], now)},
		{"expired trust", "expired", verify(blocks, 0, blocks[last], late)},
	} {
		if err := expect(forgery{name: t.name, reason: t.reason}, t.err); err != nil {
			return 0, err
		}
		refused++
	}
	return refused, nil
}

func expect(f forgery, err error) error {
	if err == nil {
		return fmt.Errorf("%s: ACCEPTED", f.name)
	}
	if !regexp.MustCompile(f.reason).MatchString(err.Error()) {
		return fmt.Errorf("%s: refused, but not for %q: %w", f.name, f.reason, err)
	}
	return nil
}

func clone(block *types.LightBlock) *types.LightBlock {
	message, err := block.ToProto()
	if err != nil {
		panic(fmt.Sprintf("a verified block encodes: %v", err))
	}
	bytes, err := message.Marshal()
	if err != nil {
		panic(fmt.Sprintf("a verified block encodes: %v", err))
	}
	copied, err := decode(bytes)
	if err != nil {
		panic(fmt.Sprintf("an encoded block decodes: %v", err))
	}
	return copied
}

func setSizes(blocks []*types.LightBlock) string {
	var sizes []string
	for i, block := range blocks {
		if i == 0 || string(block.ValidatorsHash) != string(blocks[i-1].ValidatorsHash) {
			sizes = append(sizes, fmt.Sprint(block.ValidatorSet.Size()))
		}
	}
	return strings.Join(sizes, ", ")
}
